//! The binary, as a new user meets it: files, exit codes, standard output, signals. HubSpot is `evergrant sim`.

mod demo;
mod first_steps;
mod outcomes;
mod service;
mod usage;
mod web;
mod world;
