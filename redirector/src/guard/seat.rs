//! A node's place in its cluster, given up while an application is not well. The agent is asked as often as it takes, and never
//! waited for.
//!
//! Several guards of a node, and its operator, may each want it out: it drains as long as any guard does, and a guard puts back
//! only what it took out itself. So it looks first whether the node drains already, and asks again where that has ended. That
//! it has asked is kept on disk, so that a guard that is started anew puts back what its predecessor took out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::JoinHandle;

use super::mark::Mark;
use crate::agent::control::{self, Answer, Request};
use crate::config::Config;

/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long it is left alone after it was asked.
const AGAIN: Duration = Duration::from_secs(2);

/// The place of one node.
pub struct Seat {
    /// Why it is to drain, if it is.
    wanted: Option<String>,
    /// Whether it drains by this guard, or may do so.
    own: bool,
    agent: Agent,
    /// What is being asked, and whether the node was to drain then.
    asked: Option<(bool, JoinHandle<Turned>)>,
    not_before: Instant,
    in_vain: u32,
    /// What was done last since something else was wanted: said once.
    told: Option<Done>,
}

/// What is wanted, and what was done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    /// Whether the node is to drain.
    out: bool,
    /// Whether it drains by this guard, or may do so.
    own: bool,
}

/// What is to be done where it is known whether the node drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Drain,
    /// Also where the node does not seem to drain: an earlier request to drain may be on its way.
    Undrain,
}

impl Claim {
    /// Whether there is anything to look after.
    fn is_open(self) -> bool {
        self.out || self.own
    }

    fn step(self, drains: bool) -> Step {
        match (self.out, self.own, drains) {
            (true, _, false) => Step::Drain,
            (false, true, _) => Step::Undrain,
            (true, _, true) | (false, false, _) => Step::Nothing,
        }
    }
}

/// What was found or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// The node drains already.
    Stands,
    Drained,
    Undrained,
}

/// Whether the node may drain by this guard after a turn, and what was done in it.
type Turned = (bool, Result<Done>);

/// Whom to ask about a node, and where it is kept that this was done.
#[derive(Clone)]
struct Agent {
    node: u8,
    socket: PathBuf,
    /// There while this guard, or one before it, has the node drain.
    kept: Arc<Mark>,
}

impl Agent {
    /// Does what is to be done next.
    fn turn(&self, claim: Claim) -> Turned {
        match self.drains().map(|drains| claim.step(drains)) {
            Ok(Step::Nothing) => {
                if claim.own {
                    self.kept.set();
                }
                (claim.own, Ok(Done::Stands))
            }
            Ok(Step::Drain) => self.drain(),
            Ok(Step::Undrain) => match self.ask(&Request::Undrain { node: self.node }) {
                Ok(_) => {
                    self.kept.clear();
                    (false, Ok(Done::Undrained))
                }
                Err(error) => (true, Err(error)),
            },
            Err(error) => (claim.own, Err(error)),
        }
    }

    fn drains(&self) -> Result<bool> {
        match self.ask(&Request::Draining { node: self.node })? {
            Answer::Draining { drains } => Ok(drains),
            _ => bail!("the agent answers what was not asked"),
        }
    }

    fn drain(&self) -> Turned {
        // Before it is asked: whether an answer that does not come was a yes is not known.
        self.kept.set();
        match control::answer_within(ANSWER, &self.socket, &Request::Drain { node: self.node, unless_last: true }) {
            Ok(Answer::Refused { reason, is_unsure: true, .. }) => (true, Err(anyhow::Error::msg(reason))),
            Ok(Answer::Refused { reason, .. }) => {
                self.kept.clear();
                (false, Err(anyhow::Error::msg(reason)))
            }
            Ok(_) => (true, Ok(Done::Drained)),
            Err(error) => (true, Err(error)),
        }
    }

    fn ask(&self, request: &Request) -> Result<Answer> {
        control::ask_within(ANSWER, &self.socket, request)
    }
}

impl Seat {
    /// The place of the node of this configuration, for the guard of this name.
    pub fn of(name: &str, config: &Config) -> Self {
        Self::at(name, config.node.id, &config.node.data, control::path(config))
    }

    fn at(name: &str, node: u8, data: &Path, socket: PathBuf) -> Self {
        let kept = Arc::new(Mark::at(data.join(format!("guard-{name}.drains"))));
        let own = kept.is_there();
        Self {
            wanted: own.then(|| "as it did when the guard was started".to_owned()),
            own,
            agent: Agent { node, socket, kept },
            asked: None,
            not_before: Instant::now(),
            in_vain: 0,
            told: own.then_some(Done::Drained),
        }
    }

    /// Whether the node is to drain.
    pub fn is_out(&self) -> bool {
        self.wanted.is_some()
    }

    /// From now on the node is to drain for this reason, or (none) to serve.
    pub fn want(&mut self, why: Option<String>) {
        (self.wanted, self.told) = (why, None);
        self.not_before = Instant::now();
    }

    /// Hears what the agent has answered, and asks for what is wanted and not done.
    pub async fn look(&mut self, name: &str) {
        self.agent.kept.look();
        if let Some((out, asked)) = self.asked.take_if(|(_, asked)| asked.is_finished()) {
            // Where something else is wanted meanwhile, it is asked for at once.
            if out == self.is_out() {
                self.not_before = Instant::now() + AGAIN;
            }
            match asked.await {
                Ok((own, done)) => {
                    self.own = own;
                    self.tell(name, out, done);
                }
                Err(error) => self.tell(name, out, Err(error.into())),
            }
        }
        let claim = Claim { out: self.is_out(), own: self.own };
        if self.asked.is_some() || !claim.is_open() || Instant::now() < self.not_before {
            return;
        }
        let agent = self.agent.clone();
        self.asked = Some((claim.out, tokio::task::spawn_blocking(move || agent.turn(claim))));
    }

    /// Says what was done, and each trouble once, not every two seconds.
    fn tell(&mut self, name: &str, out: bool, done: Result<Done>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                self.in_vain += 1;
                if self.in_vain == 1 {
                    let what = if out { "drain" } else { "serve again" };
                    tracing::error!(
                        name,
                        "the agent was asked in vain to have this node {what}, and is asked again: {error:#}"
                    );
                }
                return;
            }
        };
        self.in_vain = 0;
        let before = self.told.replace(done);
        match (done, &self.wanted) {
            (Done::Drained, Some(why)) if before.is_some() => {
                tracing::warn!(name, "this node drains again, which somebody had ended: {why}");
            }
            (Done::Drained, Some(why)) => tracing::warn!(name, "this node drains: {why}"),
            (Done::Drained, None) => tracing::warn!(name, "this node drains, and is well again"),
            (Done::Stands, Some(why)) if before.is_none() => {
                tracing::warn!(name, "this node drains already, and not by this guard: {why}");
            }
            (Done::Stands, _) => {}
            (Done::Undrained, _) => tracing::warn!(name, "well again: this node drains no more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn every_claim_meets_every_state_of_the_node() {
        use Step::{Drain, Nothing, Undrain};
        // Whether the node is to drain, whether it does so by this guard; what is done where it serves, and where it drains.
        for (out, own, serves, drains) in [
            (false, false, Nothing, Nothing),
            (false, true, Undrain, Undrain),
            (true, false, Drain, Nothing),
            (true, true, Drain, Nothing),
        ] {
            let claim = Claim { out, own };
            assert_eq!((claim.step(false), claim.step(true)), (serves, drains), "{claim:?}");
            assert_eq!(claim.is_open(), out || own);
        }
    }

    /// An agent of node 7, as far as guards ask it, at a real socket.
    struct Node {
        data: PathBuf,
        drains: Arc<AtomicBool>,
        is_last: Arc<AtomicBool>,
        /// Whether what is asked for is done after the answer, which is that nobody knows.
        is_slow: Arc<AtomicBool>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Node {
        fn start(name: &str) -> Self {
            let data = std::env::temp_dir().join(format!("redirector-seat-{name}-{}", std::process::id()));
            fs::create_dir_all(&data).unwrap();
            let socket = data.join("sock");
            let _ = fs::remove_file(&socket);
            let listener = UnixListener::bind(socket).unwrap();
            let node = Self {
                data,
                drains: Arc::default(),
                is_last: Arc::default(),
                is_slow: Arc::default(),
                asked: Arc::default(),
            };
            let (drains, is_last, asked) = (node.drains.clone(), node.is_last.clone(), node.asked.clone());
            let is_slow = node.is_slow.clone();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut line = String::new();
                    BufReader::new(&stream).read_line(&mut line).unwrap();
                    let done = || Answer::Done { node: "n7".into(), version: 1, changes: Vec::new(), durable: None };
                    let answer = match serde_json::from_str(&line).unwrap() {
                        Request::Draining { node: 7 } => Answer::Draining { drains: drains.load(Ordering::SeqCst) },
                        Request::Drain { node: 7, unless_last: true } if is_last.load(Ordering::SeqCst) => {
                            asked.lock().unwrap().push("drain in vain".into());
                            Answer::Refused { reason: "the last".into(), present: None, is_unsure: false }
                        }
                        Request::Drain { node: 7, unless_last: true } if is_slow.load(Ordering::SeqCst) => {
                            asked.lock().unwrap().push("drain".into());
                            Answer::Refused { reason: "who knows".into(), present: None, is_unsure: true }
                        }
                        Request::Drain { node: 7, unless_last: true } => {
                            asked.lock().unwrap().push("drain".into());
                            drains.store(true, Ordering::SeqCst);
                            done()
                        }
                        Request::Undrain { node: 7 } => {
                            asked.lock().unwrap().push("undrain".into());
                            drains.store(false, Ordering::SeqCst);
                            done()
                        }
                        other => panic!("{other:?}"),
                    };
                    writeln!(stream, "{}", serde_json::to_string(&answer).unwrap()).unwrap();
                }
            });
            node
        }

        fn guard(&self, name: &str) -> Seat {
            Seat::at(name, 7, &self.data, self.data.join("sock"))
        }

        fn drains(&self) -> bool {
            self.drains.load(Ordering::SeqCst)
        }

        /// What was asked for since the last time.
        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut self.asked.lock().unwrap())
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.data);
        }
    }

    /// A guard looks at once, and hears what comes of it.
    async fn look(seat: &mut Seat) {
        seat.not_before = Instant::now();
        seat.look("test").await;
        while seat.asked.is_some() {
            // As a guard does, who would not ask once more so soon.
            tokio::time::sleep(Duration::from_millis(1)).await;
            if seat.asked.as_ref().is_some_and(|(_, asked)| asked.is_finished()) {
                seat.look("test").await;
            }
        }
    }

    fn ill() -> Option<String> {
        Some("it is ill".to_owned())
    }

    #[tokio::test]
    async fn of_two_guards_either_may_be_well_first_and_the_node_drains_while_one_is_not() {
        for first_out in [0, 1] {
            for first_well in [0, 1] {
                let node = Node::start(&format!("two-{first_out}-{first_well}"));
                let mut guards = [node.guard("a"), node.guard("b")];
                for at in [first_out, 1 - first_out] {
                    guards[at].want(ill());
                    look(&mut guards[at]).await;
                    assert!(node.drains());
                }
                assert_eq!(node.asked(), ["drain"], "the second finds it draining");
                guards[first_well].want(None);
                look(&mut guards[first_well]).await;
                look(&mut guards[1 - first_well]).await;
                assert!(node.drains(), "the other guard wants it out still");
                let again: &[&str] = if first_well == first_out { &["undrain", "drain"] } else { &[] };
                assert_eq!(node.asked(), again);
                guards[1 - first_well].want(None);
                for guard in &mut guards {
                    look(guard).await;
                }
                assert!(!node.drains(), "all are well");
                assert_eq!(node.asked(), ["undrain"]);
                assert_eq!(fs::read_dir(&node.data).unwrap().count(), 1, "nothing but the socket is left");
            }
        }
    }

    #[tokio::test]
    async fn what_somebody_else_took_out_stays_out_and_what_somebody_else_put_back_does_not() {
        let node = Node::start("operator");
        node.drains.store(true, Ordering::SeqCst);
        let mut guard = node.guard("a");
        guard.want(ill());
        look(&mut guard).await;
        guard.want(None);
        look(&mut guard).await;
        assert!(node.drains() && node.asked().is_empty(), "the operator's drain is none of the guard's");
        node.drains.store(false, Ordering::SeqCst);
        guard.want(ill());
        look(&mut guard).await;
        node.drains.store(false, Ordering::SeqCst);
        look(&mut guard).await;
        assert!(node.drains(), "it is asked again where somebody put it back");
        assert_eq!(node.asked(), ["drain", "drain"]);
        node.drains.store(false, Ordering::SeqCst);
        guard.want(None);
        look(&mut guard).await;
        assert!(node.asked() == ["undrain"] && !guard.own, "it serves already");
    }

    #[tokio::test]
    async fn a_drain_of_which_nobody_knows_whether_it_was_done_is_put_back() {
        for is_done_before in [true, false] {
            let node = Node::start(&format!("unsure-{is_done_before}"));
            node.is_slow.store(true, Ordering::SeqCst);
            let mut guard = node.guard("a");
            guard.want(ill());
            look(&mut guard).await;
            assert!(guard.own && node.guard("a").is_out(), "the next guard knows of it too");
            node.drains.store(is_done_before, Ordering::SeqCst);
            guard.want(None);
            look(&mut guard).await;
            assert_eq!(
                (node.asked().as_slice(), node.drains()),
                (["drain".to_owned(), "undrain".to_owned()].as_slice(), false)
            );
            assert!(!guard.own);
        }
    }

    #[tokio::test]
    async fn the_next_guard_puts_back_what_the_one_before_it_took_out() {
        let node = Node::start("next");
        let mut guard = node.guard("a");
        guard.want(ill());
        look(&mut guard).await;
        drop(guard);
        assert!(!node.guard("b").is_out(), "another application's guard");
        let mut guard = node.guard("a");
        assert!(guard.is_out());
        look(&mut guard).await;
        guard.want(None);
        look(&mut guard).await;
        assert_eq!(node.asked(), ["drain", "undrain"]);
        assert!(!node.guard("a").is_out());
    }

    #[tokio::test]
    async fn a_disk_that_fails_keeps_no_node_in_and_the_next_guard_knows_as_soon_as_it_works() {
        let node = Node::start("disk");
        let absent = node.data.join("absent");
        let mut guard = Seat::at("a", 7, &absent, node.data.join("sock"));
        guard.want(ill());
        look(&mut guard).await;
        assert!(node.drains() && guard.own);
        fs::create_dir(&absent).unwrap();
        look(&mut guard).await;
        assert!(Seat::at("a", 7, &absent, node.data.join("sock")).is_out());
        assert_eq!(node.asked(), ["drain"]);
    }

    #[tokio::test]
    async fn the_last_node_is_asked_for_in_vain_until_another_serves() {
        let node = Node::start("last");
        node.is_last.store(true, Ordering::SeqCst);
        let mut guard = node.guard("a");
        guard.want(ill());
        look(&mut guard).await;
        assert!(!node.drains() && !guard.own && !node.guard("a").is_out(), "nothing was taken out");
        // Another does it meanwhile, and this guard never did.
        node.drains.store(true, Ordering::SeqCst);
        guard.want(None);
        look(&mut guard).await;
        assert_eq!(node.asked(), ["drain in vain"]);
        node.drains.store(false, Ordering::SeqCst);
        node.is_last.store(false, Ordering::SeqCst);
        guard.want(ill());
        look(&mut guard).await;
        assert!(node.drains() && guard.own);
    }
}
