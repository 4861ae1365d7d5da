//! The programs of a run: three nginx (a provider, a proxy, a static answer) and the service, all on loopback. They end with it.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::bench::measure::Load;
use crate::shell::{self, cargo, is_there, program, target};

/// Connections that are called in turn.
pub(crate) const IDS: usize = 1024;
/// Batches that name all of them.
pub(crate) const BATCHES: usize = IDS / 64;
/// The largest body that is sent.
pub(crate) const HUGE: u64 = 1 << 30;
const BIG: u64 = 8 << 20;
/// As many connections as the clients hold open.
const AT_ONCE: u32 = 64;
const AT_ONCE_LARGE: u32 = 8;
const BEARER: &str =
    "Bearer ya29.a-token-of-the-usual-length-0123456789abcdef0123456789abcdef0123456789abcdef";

/// Says at once everything that is missing.
pub(crate) fn look_for_programs() -> Result<()> {
    let missing: Vec<&str> = ["nginx", "wrk", "strace", "openssl"]
        .into_iter()
        .filter(|name| !is_on_path(name))
        .collect();
    if !missing.is_empty() {
        bail!("missing: {0}. On Debian: apt-get install {0}", missing.join(" "));
    }
    if !Path::new("/proc/self/schedstat").exists() {
        bail!("CPU is counted by /proc/PID/task/*/schedstat, which this system has not got");
    }
    Ok(())
}

fn is_on_path(name: &str) -> bool {
    // They do not agree on how to be asked for their version.
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(name).is_file()) || is_there(name)
}

/// The binary as it ships.
pub(crate) fn build() -> Result<PathBuf> {
    shell::run(cargo().args([
        "build",
        "--locked",
        "--profile",
        "dist",
        "--package",
        "evergrant-cli",
    ]))?;
    Ok(target().join("dist/evergrant"))
}

/// A program that ends with the run.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // nginx ends its workers only when it is asked to.
        let _ = shell::run_quietly(program("kill").args(["-TERM", &self.0.id().to_string()]));
        for _ in 0..100 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All of them.
pub(crate) struct World {
    /// The service's process, as a list.
    pub(crate) ours: Vec<u32>,
    pub(crate) our_pid: u32,
    proxy: Vec<u32>,
    fixed: Vec<u32>,
    ports: Ports,
    key: String,
    folder: PathBuf,
    running: Vec<Running>,
}

struct Ports {
    provider: u16,
    provider_tls: u16,
    proxy: u16,
    fixed: u16,
    ours: u16,
}

impl World {
    pub(crate) fn start(binary: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("evergrant-bench-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listeners = [free()?, free()?, free()?, free()?, free()?];
        let port = |at: usize| listeners[at].local_addr().map(|address| address.port());
        let ports = Ports {
            provider: port(0)?,
            provider_tls: port(1)?,
            proxy: port(2)?,
            fixed: port(3)?,
            ours: port(4)?,
        };
        drop(listeners);
        for (name, size) in [("big.bin", BIG), ("huge.bin", HUGE)] {
            fs::File::create(folder.join(name))?.set_len(size)?;
        }
        certificate(&folder)?;
        let mut world = Self {
            ours: vec![],
            our_pid: 0,
            proxy: vec![],
            fixed: vec![],
            ports,
            key: String::new(),
            folder,
            running: vec![],
        };
        world.start_ours(binary)?;
        world.start_nginx("provider", &world.provider())?;
        world.proxy = world.start_nginx("proxy", &world.proxy())?;
        world.fixed = world.start_nginx("fixed", &world.fixed())?;
        world.write_scripts()?;
        Ok(world)
    }

    fn start_ours(&mut self, binary: &Path) -> Result<()> {
        let Ports {
            provider,
            provider_tls,
            ours,
            ..
        } = self.ports;
        let app = |name: &str, base: &str| {
            format!(
                "[apps.{name}]\nprovider = \"generic\"\nclient_id = \"bench\"\nclient_secret_env = \"BENCH_SECRET\"\nkeep_fresh = \"off\"\n\
                 authorize_url = \"{base}authorize\"\ntoken_url = \"{base}oauth/token\"\napi_base = \"{base}\"\n\n"
            )
        };
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:{ours}\"\n\n[store]\nurl = \"sqlite://bench.db\"\n\n{}{}",
            app("plain", &format!("http://127.0.0.1:{provider}/")),
            app("tls", &format!("https://localhost:{provider_tls}/")),
        );
        fs::write(self.folder.join("evergrant.toml"), config)?;
        let vault_key = shell::output(program("openssl").args(["rand", "-base64", "32"]))?;
        let command = |arguments: &[&str]| {
            let mut command = Command::new(binary);
            command
                .args(arguments)
                .current_dir(&self.folder)
                .env_clear()
                .env("EVERGRANT_VAULT__KEY", vault_key.trim())
                .env("BENCH_SECRET", "secret")
                .env("SSL_CERT_FILE", self.folder.join("cert.pem"))
                .stdin(Stdio::null());
            command
        };
        let made = shell::output(&mut command(&[
            "--json", "keys", "create", "--name", "bench", "--role", "admin",
        ]))?;
        let made: Value = serde_json::from_str(&made)?;
        made["key"].as_str().context("a key")?.clone_into(&mut self.key);
        let log = fs::File::create(self.folder.join("ours.log"))?;
        let mut child = command(&["serve"]).stdout(Stdio::piped()).stderr(log).spawn()?;
        self.our_pid = child.id();
        self.ours = vec![child.id()];
        let mut line = String::new();
        let printed = child
            .stdout
            .take()
            .map(|out| BufReader::new(out).read_line(&mut line));
        self.running.push(Running(child));
        ensure!(
            printed.is_some_and(|read| read.is_ok()) && line.contains("listens"),
            "the service did not start: {}",
            fs::read_to_string(self.folder.join("ours.log")).unwrap_or_default()
        );
        for number in 0..IDS {
            self.import("plain", &id(number))?;
        }
        self.import("tls", "tls")
    }

    fn import(&self, app: &str, id: &str) -> Result<()> {
        let body = json!({
            "app": app, "customer": "bench", "id": id, "account": id, "refresh_token": format!("refresh-{id}"),
            "access_token": BEARER.trim_start_matches("Bearer "), "expires_at": "2099-01-01T00:00:00Z",
        })
        .to_string();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.ours))?;
        write!(
            stream,
            "POST /v1/connections HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.key,
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        Ok(())
    }

    /// Returns the processes that serve.
    fn start_nginx(&mut self, name: &str, http: &str) -> Result<Vec<u32>> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let config = format!(
            "worker_processes 2;\ndaemon off;\npid nginx.pid;\nerror_log error.log warn;\n\
             events {{ worker_connections 8192; multi_accept on; }}\n\
             http {{\naccess_log off; keepalive_requests 100000000; keepalive_timeout 300s; client_max_body_size 0; tcp_nodelay on;\n\
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\n{http}\n}}\n"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, config)?;
        let log = fs::File::create(folder.join("printed.log"))?;
        let child = program("nginx")
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(&file)
            .stderr(log)
            .spawn()?;
        let master = child.id();
        self.running.push(Running(child));
        for _ in 0..100 {
            sleep(Duration::from_millis(50));
            let children =
                fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
            let workers: Vec<u32> = children
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect();
            if workers.len() == 2 {
                return Ok(workers);
            }
        }
        Err(anyhow!(
            "nginx did not start: {}",
            fs::read_to_string(folder.join("printed.log")).unwrap_or_default()
        ))
    }

    /// 1 KiB of JSON for whoever has a bearer, larger things without, and a place for bodies.
    fn provider(&self) -> String {
        let body = format!("{{\"id\":1,\"items\":[\"{}\"]}}", "x".repeat(1003));
        let Ports {
            provider,
            provider_tls,
            ..
        } = self.ports;
        format!(
            "server {{\nlisten 127.0.0.1:{provider} backlog=4096;\nlisten 127.0.0.1:{provider_tls} ssl backlog=4096;\n\
             ssl_certificate ../cert.pem; ssl_certificate_key ../key.pem; ssl_session_cache shared:s:10m;\n\
             default_type application/json;\nroot ..;\n\
             location = /item {{ if ($http_authorization !~ '^Bearer ') {{ return 401; }} return 200 '{body}'; }}\n\
             location = /sink {{ return 200 'ok'; }}\n}}"
        )
    }

    fn proxy(&self) -> String {
        let Ports {
            provider,
            provider_tls,
            proxy,
            ..
        } = self.ports;
        let mut text = String::new();
        for (name, port) in [("plain", provider), ("tls", provider_tls)] {
            let _ = writeln!(
                text,
                "upstream {name} {{ server 127.0.0.1:{port}; keepalive 128; keepalive_requests 100000000; keepalive_timeout 300s; }}"
            );
        }
        let _ = writeln!(text, "server {{\nlisten 127.0.0.1:{proxy} backlog=4096;");
        for (path, to, more) in [
            ("call", "http://plain", ""),
            ("large", "http://plain", "proxy_buffering off;"),
            ("tls", "https://tls", "proxy_ssl_session_reuse on;"),
        ] {
            let _ = writeln!(
                text,
                "location ~ ^/{path}/[^/]+(/.*)$ {{ proxy_pass {to}$1$is_args$args; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                 proxy_set_header Authorization \"{BEARER}\"; {more} }}"
            );
        }
        text + "}"
    }

    /// What a token looks like, behind one comparison of a key.
    fn fixed(&self) -> String {
        let body = json!({
            "access_token": BEARER.trim_start_matches("Bearer "), "token_type": "Bearer",
            "expires_at": "2099-01-01T00:00:00Z", "seconds_remaining": 2_000_000_000, "version": 1,
        });
        format!(
            "server {{\nlisten 127.0.0.1:{} backlog=4096;\ndefault_type application/json;\n\
             location / {{ if ($http_authorization != 'Bearer {}') {{ return 401; }} add_header cache-control no-store; return 200 '{body}'; }}\n}}",
            self.ports.fixed, self.key
        )
    }

    /// The requests of each load, all connections in turn, made before the clock runs.
    fn write_scripts(&self) -> Result<()> {
        let scripts = [
            ("call", "'/call/' .. id .. '/item'".to_owned()),
            ("nginx-tls", "'/tls/' .. id .. '/item'".to_owned()),
            ("nginx-large", "'/large/' .. id .. '/big.bin'".to_owned()),
            ("token", "'/v1/connections/' .. id .. '/token'".to_owned()),
            ("gateway", "'/gateway/' .. id .. '/item'".to_owned()),
            ("gateway-large", "'/gateway/' .. id .. '/big.bin'".to_owned()),
            ("gateway-tls", "'/gateway/tls/item'".to_owned()),
            ("gateway-one", "'/gateway/connection-0000/item'".to_owned()),
            ("token-one", "'/v1/connections/connection-0000/token'".to_owned()),
        ];
        let begin = format!(
            "local made, at = {{}}, 0\nlocal headers = {{ Authorization = 'Bearer {}' }}\n",
            self.key
        );
        let end = "end\nend\nfunction request() at = at % #made + 1 return made[at] end\n";
        for (name, path) in scripts {
            let script = format!(
                "{begin}function init()\nfor n = 0, {} do\nlocal id = string.format('connection-%04d', n)\n\
                 made[#made + 1] = wrk.format('GET', {path}, headers)\n{end}",
                IDS - 1
            );
            fs::write(self.folder.join(name).with_extension("lua"), script)?;
        }
        let script = format!(
            "{begin}headers['Content-Type'] = 'application/json'\nfunction init()\nfor batch = 0, {} do\nlocal ids = {{}}\n\
             for n = batch * 64, batch * 64 + 63 do ids[#ids + 1] = string.format('\"connection-%04d\"', n) end\n\
             made[#made + 1] = wrk.format('POST', '/v1/tokens/batch', headers, '{{\"connections\":[' .. table.concat(ids, ',') .. ']}}')\n{end}",
            BATCHES - 1
        );
        Ok(fs::write(self.folder.join("batch.lua"), script)?)
    }

    fn load(&self, server: &[u32], port: u16, script: &str, connections: u32) -> Load {
        Load {
            server: server.to_vec(),
            url: format!("http://127.0.0.1:{port}/"),
            connections,
            script: self.folder.join(script).with_extension("lua"),
        }
    }

    pub(crate) fn call(&self) -> Load {
        self.load(&self.ours, self.ports.ours, "gateway", AT_ONCE)
    }

    pub(crate) fn token(&self) -> Load {
        self.load(&self.ours, self.ports.ours, "token", AT_ONCE)
    }

    pub(crate) fn call_of_one(&self) -> Load {
        self.load(&self.ours, self.ports.ours, "gateway-one", AT_ONCE)
    }

    pub(crate) fn token_of_one(&self) -> Load {
        self.load(&self.ours, self.ports.ours, "token-one", AT_ONCE)
    }

    pub(crate) fn batch(&self) -> Load {
        self.load(&self.ours, self.ports.ours, "batch", AT_ONCE)
    }

    pub(crate) fn large(&self) -> Load {
        self.load(&self.ours, self.ports.ours, "gateway-large", AT_ONCE_LARGE)
    }

    pub(crate) fn tls(&self) -> Load {
        self.load(&self.ours, self.ports.ours, "gateway-tls", AT_ONCE)
    }

    pub(crate) fn nginx_call(&self) -> Load {
        self.load(&self.proxy, self.ports.proxy, "call", AT_ONCE)
    }

    pub(crate) fn nginx_large(&self) -> Load {
        self.load(&self.proxy, self.ports.proxy, "nginx-large", AT_ONCE_LARGE)
    }

    pub(crate) fn nginx_tls(&self) -> Load {
        self.load(&self.proxy, self.ports.proxy, "nginx-tls", AT_ONCE)
    }

    pub(crate) fn nginx_token(&self) -> Load {
        self.load(&self.fixed, self.ports.fixed, "token", AT_ONCE)
    }

    pub(crate) fn connect(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.ours))?)
    }

    /// A call's head; the connection ends after its answer.
    pub(crate) fn head(&self, method: &str, path: &str, length: u64) -> String {
        format!(
            "{method} /gateway/{}/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
            id(0),
            self.key
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.running.clear();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn id(number: usize) -> String {
    format!("connection-{number:04}")
}

/// For the provider's TLS: our own, and no authority's.
fn certificate(folder: &Path) -> Result<()> {
    const CONFIG: &str = "[req]\ndistinguished_name = name\nx509_extensions = end\nprompt = no\n[name]\nCN = localhost\n\
        [end]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = DNS:localhost\n";
    fs::write(folder.join("openssl.cnf"), CONFIG)?;
    let mut openssl = program("openssl");
    openssl
        .current_dir(folder)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-config", "openssl.cnf", "-keyout", "key.pem", "-out", "cert.pem"])
        .stderr(Stdio::null());
    shell::run_quietly(&mut openssl)
}
