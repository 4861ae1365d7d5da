//! The image, and the Compose file that runs it beside a database.

use super::{Rules, STATE, entries, is_secret, list, seconds, texts};

impl Rules<'_> {
    pub(super) fn image(&mut self) {
        let image = self.at("/dockerfile/image");
        let user = self.text("/dockerfile/image/USER/0/0");
        let numeric = user
            .split(':')
            .all(|id| id.parse::<u32>().is_ok_and(|id| id != 0));
        self.holds(numeric, "Dockerfile: the last USER is a number, and not root's");
        for stage in ["build", "image"] {
            let stage = self.at(&format!("/dockerfile/{stage}"));
            let base = stage["FROM"][0][0].as_str().unwrap_or_default();
            let tag = base.rsplit_once(':').map(|(_, tag)| tag);
            self.holds(
                tag.is_some_and(|tag| tag != "latest"),
                "Dockerfile: bases have a tag",
            );
            for instruction in ["ADD", "ARG", "ENV"] {
                self.holds(
                    stage[instruction].is_null(),
                    "Dockerfile: COPY is enough, and variables would stay in the image",
                );
            }
        }
        self.holds(
            image["RUN"].is_null(),
            "Dockerfile: nothing is run in the image itself",
        );
        let copied: Vec<_> = list(&image["COPY"]).into_iter().map(texts).collect();
        let from_build = copied.iter().all(|words| words.contains(&"--from=build"));
        let targets: Vec<_> = copied.iter().filter_map(|words| words.last().copied()).collect();
        self.holds(
            from_build && targets == [STATE, "/usr/local/bin/evergrant"],
            "Dockerfile: the image gets one binary and an empty folder for its state",
        );
        self.is(
            "Dockerfile: ENTRYPOINT",
            &image["ENTRYPOINT"][0][0],
            "[/usr/local/bin/evergrant]",
        );
        self.is("Dockerfile: CMD", &image["CMD"][0][0], "[serve]");
        self.is("Dockerfile: STOPSIGNAL", &image["STOPSIGNAL"][0][0], "SIGTERM");
        self.is("Dockerfile: WORKDIR", &image["WORKDIR"][0][0], STATE);
        let version = format!(
            "org.opencontainers.image.version={}",
            self.text("/package/version")
        );
        self.holds(
            texts(&image["LABEL"][0]).contains(&version.as_str()),
            "Dockerfile: the label has the version of Cargo.toml",
        );
        let rust = format!("rust:{}-slim-bookworm", self.text("/package/rust-version"));
        self.is(
            "Dockerfile: the compiler",
            self.at("/dockerfile/build/FROM/0/0"),
            rust,
        );
        let patterns = texts(self.at("/dockerignore"));
        let first = patterns.iter().find(|line| !line.starts_with('#'));
        self.holds(
            first == Some(&"*"),
            ".dockerignore: begins by leaving out everything",
        );
    }

    pub(super) fn compose(&mut self) {
        for (name, service) in entries(self.at("/compose/services")) {
            self.is(
                &format!("compose.yaml: {name}: read_only"),
                &service["read_only"],
                true,
            );
            self.is(
                &format!("compose.yaml: {name}: cap_drop"),
                &service["cap_drop"],
                vec!["ALL"],
            );
            self.is(
                &format!("compose.yaml: {name}: security_opt"),
                &service["security_opt"],
                vec!["no-new-privileges:true"],
            );
            let user = service["user"].as_str().unwrap_or("0");
            self.holds(!user.starts_with('0'), "compose.yaml: nobody is root");
            let in_clear =
                entries(&service["environment"]).any(|(name, _)| is_secret(name) && !name.ends_with("_FILE"));
            self.holds(!in_clear, "compose.yaml: secrets are files and no variables");
            for port in texts(&service["ports"]) {
                self.holds(
                    port.starts_with("127.0.0.1:"),
                    "compose.yaml: plain HTTP is published on loopback only",
                );
            }
        }
        for name in ["evergrant", "migrate"] {
            let service = self.at(&format!("/compose/services/{name}"));
            let image = format!("evergrant:{}", self.text("/package/version"));
            self.is(&format!("compose.yaml: {name}: image"), &service["image"], image);
            self.is(
                &format!("compose.yaml: {name}: user"),
                &service["user"],
                self.text("/dockerfile/image/USER/0/0"),
            );
            self.is(
                &format!("compose.yaml: {name}: the configuration"),
                &service["configs"][0]["target"],
                "/etc/evergrant/evergrant.toml",
            );
            self.is(
                &format!("compose.yaml: {name}: volumes"),
                &service["volumes"][0],
                format!("state:{STATE}"),
            );
        }
        let service = self.at("/compose/services/evergrant");
        self.is(
            "compose.yaml: evergrant waits for the schema",
            &service["depends_on"]["migrate"]["condition"],
            "service_completed_successfully",
        );
        let port = self.text("/loaded/compose/port");
        self.is(
            "compose.yaml: the port",
            &service["ports"][0],
            format!("127.0.0.1:{port}:{port}"),
        );
        self.is(
            "Dockerfile: EXPOSE",
            self.at("/dockerfile/image/EXPOSE/0/0"),
            port,
        );
        let stops_in = seconds(&service["stop_grace_period"]);
        let needed = self.seconds_to_stop("compose");
        self.holds(
            stops_in >= needed,
            "compose.yaml: stop_grace_period is longer than draining and saving take",
        );
        let from = texts(&self.at("/compose/secrets")["vault-key"]).is_empty()
            && self.text("/compose/configs/evergrant/file") == "./deploy/compose/config.toml";
        self.holds(from, "compose.yaml: the configuration is the one beside it");
    }
}
