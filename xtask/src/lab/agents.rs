//! The programs under test: the nodes' agents and the backends' decap.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::config::{CLUSTER, PKI};
use super::{Config, Lab, Process, Role, Vip};
use crate::step;

/// How long a program may take from its start until it does its work.
const READY: Duration = Duration::from_secs(20);
/// How long all nodes may take until each is a voter that serves its share of the slots.
const AGREED: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);
/// Names the library that agents load first.
const PRELOAD: &str = "preload";

impl Lab {
    /// Writes the configuration of every node and backend, and puts the VIPs on the backends' `lo`.
    pub fn configure(&self, config: &Config) -> Result<()> {
        self.certify()?;
        for node in 1..=self.topology.nodes {
            let file = config.file(&self.topology, &self.directory, node)?;
            self.write_config(&Role::Node(node).name(self.topology.fabric), &file)?;
        }
        let file = config.backend_file(&self.topology)?;
        for backend in self.backends() {
            self.write_config(&backend, &file)?;
        }
        let vips: Vec<String> = config
            .vip
            .iter()
            .map(|Vip { address, .. }| match (address.contains('/'), address.contains(':')) {
                (true, _) => format!("route replace local {address} dev lo"),
                (false, false) => format!("address replace {address}/32 dev lo"),
                (false, true) => format!("address replace {address}/128 dev lo nodad"),
            })
            .collect();
        for backend in self.backends() {
            self.host(&backend)?.ip(&vips)?;
        }
        Ok(())
    }

    /// Makes the certificates by which the nodes' agents know each other, once.
    fn certify(&self) -> Result<()> {
        let directory = self.directory.join(PKI);
        if directory.exists() {
            return Ok(());
        }
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let pki = |action: &str, option: &str, number: u32| {
            let mut command = Command::new(binary()?);
            command.args(["pki", action, "--dir"]).arg(&directory).args([option, &number.to_string()]);
            step::read(&mut command).map(drop)
        };
        pki("init", "--cluster", CLUSTER)?;
        (1..=self.topology.nodes).try_for_each(|node| pki("issue", "--node", u32::from(node)))
    }

    fn write_config(&self, host: &str, text: &str) -> Result<()> {
        let path = self.config_file(host);
        for directory in ["data", "run"] {
            let directory = path.with_file_name(directory);
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The configuration file of a node or backend.
    pub fn config_file(&self, host: &str) -> PathBuf {
        self.directory.join(host).join("config.toml")
    }

    /// `redirector ARGS --config FILE` on a node or backend.
    pub fn redirector(&self, host: &str, args: &[impl AsRef<str>]) -> Result<Command> {
        let mut command = self.host(host)?.command(binary()?);
        command.args(args.iter().map(AsRef::as_ref)).arg("--config").arg(self.config_file(host));
        Ok(command)
    }

    /// Starts all agents and waits until each answers and all agree: on their files, and on who serves. A cluster that has
    /// not begun yet begins with the first node.
    pub fn start_agents(&self) -> Result<()> {
        let nodes = self.nodes();
        let agents: Vec<Process> = nodes.iter().map(|node| self.spawn_agent(node)).collect::<Result<_>>()?;
        nodes.iter().zip(&agents).try_for_each(|(node, agent)| self.agent_ready(node, agent))?;
        if let [first, _, ..] = nodes.as_slice() {
            self.bootstrap(first)?;
            nodes.iter().zip(&agents).try_for_each(|(node, agent)| self.agrees(node, agent))?;
        }
        self.whole()
    }

    /// Begins a cluster, unless it has begun.
    fn bootstrap(&self, node: &str) -> Result<()> {
        let begun = self.redirector(node, &["bootstrap"])?.output().context("cannot run `redirector bootstrap`")?;
        let says = String::from_utf8_lossy(&begun.stderr);
        ensure!(begun.status.success() || says.contains("a cluster begins once"), "{node}: {says}");
        Ok(())
    }

    /// Waits until all nodes know each other for voters that serve their share of the slots.
    pub fn settled(&self) -> Result<()> {
        let agents = self.nodes().into_iter().map(|node| Ok((self.process(&format!("{node}-agent"))?, node)));
        let agents: Vec<_> = agents.collect::<Result<_>>()?;
        agents.iter().try_for_each(|(agent, node)| self.agrees(node, agent))
    }

    /// The node that leads the consensus.
    pub fn leader(&self) -> Result<String> {
        for node in self.nodes() {
            let leads = |one: &&Value| one["leads"] == true;
            if let Some(name) = self.asked(&node)?.iter().find(leads).and_then(|one| one["name"].as_str()) {
                return Ok(name.to_owned());
            }
        }
        anyhow::bail!("no node leads")
    }

    /// Waits until a node knows all others for voters that serve their share of the slots by its own file.
    fn agrees(&self, node: &str, agent: &Process) -> Result<()> {
        let file = self.config_file(node).display().to_string();
        wait_for(agent, AGREED, || {
            let nodes = self.asked(node)?;
            let is_witness = |one: &&Value| one["agreed"]["standing"] == "witness";
            let is_settled = |one: &&Value| {
                (one["agreed"]["standing"] == "up" || is_witness(one)) && one["agreed"]["seat"] == "voter"
            };
            let owners = || nodes.iter().filter(|one| !is_witness(one));
            let shares = || owners().filter_map(|one| one["primary_slots"].as_u64());
            let (least, most) = (shares().min().unwrap_or(0), shares().max().unwrap_or(0));
            if nodes.len() < 2 || !nodes.iter().all(|one| is_settled(&one)) || most - least > nodes.len() as u64 {
                return Ok(Some(format!("it does not know all others for members that serve their share: {nodes:?}")));
            }
            let asked = self.redirector(node, &["diff", &file])?.output().context("cannot run `redirector diff`")?;
            let says = String::from_utf8_lossy(&asked.stdout).into_owned();
            Ok(if says.starts_with("0 changes") { None } else { Some(format!("its file is not in force: {says}")) })
        })
    }

    /// The nodes as one of them sees them; none where it does not answer.
    fn asked(&self, node: &str) -> Result<Vec<Value>> {
        let asked = self.redirector(node, &["get", "nodes", "-o", "json"])?.output()?;
        Ok(serde_json::from_slice(&asked.stdout).unwrap_or_default())
    }

    /// Starts one node's agent, as `NODE-agent`, and waits until it answers.
    pub fn start_agent(&self, node: &str) -> Result<Process> {
        let agent = self.spawn_agent(node)?;
        self.agent_ready(node, &agent)?;
        Ok(agent)
    }

    /// Starts on every backend the program that takes tunnels apart, as `BACKEND-decap`, and waits until it is attached.
    pub fn start_decaps(&self) -> Result<()> {
        for backend in self.backends() {
            self.spawn(&backend, "decap", self.redirector(&backend, &["decap"])?)?;
        }
        for backend in self.backends() {
            let decap = self.process(&format!("{backend}-decap"))?;
            self.attached(&backend, &decap)?;
        }
        Ok(())
    }

    /// Waits until a process has attached a program to its host's interface.
    pub(super) fn attached(&self, host: &str, process: &Process) -> Result<()> {
        wait_for(process, READY, || {
            for interface in self.interfaces(host)? {
                let link = self.host(host)?.command("ip").args(["-o", "link", "show", interface]).output()?;
                if !link.stdout.windows(9).any(|word| word == b" prog/xdp") {
                    return Ok(Some(format!("nothing is attached to its {interface}")));
                }
            }
            Ok(None)
        })
    }

    /// Has agents that are started from now on load a library first, whose functions take the place of the system's.
    pub fn preload(&self, library: &Path) -> Result<()> {
        let file = self.directory.join(PRELOAD);
        fs::write(&file, library.display().to_string()).with_context(|| format!("cannot write {}", file.display()))
    }

    pub(super) fn spawn_agent(&self, node: &str) -> Result<Process> {
        let mut command = self.redirector(node, &["run"])?;
        if let Ok(library) = fs::read_to_string(self.directory.join(PRELOAD)) {
            command.env("LD_PRELOAD", library);
        }
        self.spawn(node, "agent", command)
    }

    /// An agent is ready when its control socket answers; the socket's file alone may be left from one that was killed.
    pub(super) fn agent_ready(&self, node: &str, agent: &Process) -> Result<()> {
        let file = self.config_file(node).display().to_string();
        wait_for(agent, READY, || {
            // `get` would be content with the maps, which are there without an agent too.
            let asked = self.redirector(node, &["diff", &file])?.output().context("cannot run `redirector diff`")?;
            Ok(if asked.status.success() {
                None
            } else {
                Some(String::from_utf8_lossy(&asked.stderr).trim().to_owned())
            })
        })
    }
}

/// Waits until nothing is missing any more for a process to be ready.
pub(super) fn wait_for(
    process: &Process,
    patience: Duration,
    missing: impl Fn() -> Result<Option<String>>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while let Some(missing) = missing()? {
        let Process { label, .. } = process;
        ensure!(process.alive(), "{label} has ended; its last words:\n{}", process.log_tail());
        ensure!(
            Instant::now() < deadline,
            "{label} is not ready after {patience:?}: {missing}\nits last words:\n{}",
            process.log_tail()
        );
        thread::sleep(POLL);
    }
    Ok(())
}

/// The program under test.
fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("REDIRECTOR_BIN") {
        return Ok(path.into());
    }
    let path = step::target().join("release/redirector");
    ensure!(
        path.exists(),
        "{} is not there: build it with `cargo build --release -p redirector`, or name another in REDIRECTOR_BIN",
        path.display()
    );
    Ok(path)
}
