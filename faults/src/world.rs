//! What only root can break, and has to put right again: the network, the disk.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::{Outcome, Stuck, Trying as _};

/// What this machine and this user allow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Powers {
    /// A network of our own, with packet loss.
    pub network: bool,
    /// Small file systems.
    pub mount: bool,
    /// Other clocks.
    pub faketime: Option<&'static str>,
    /// Containers.
    pub docker: bool,
}

const FAKETIME: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// Moves this thread, and all that are started from it, to a network and a mount table of their own, where
/// whatever is done harms nobody else and is gone when the last process of the suite is. For the first
/// thread, before it starts others.
pub fn apart() -> Powers {
    let faketime = FAKETIME.into_iter().find(|path| Path::new(path).exists());
    let mut powers = Powers { faketime, ..Powers::default() };
    if !nix::unistd::geteuid().is_root() {
        return powers;
    }
    let private = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // What is mounted here is not to be seen elsewhere.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
    };
    powers.mount = private().is_ok();
    let loopback =
        || unshare(CloneFlags::CLONE_NEWNET).is_ok() && run("ip", &["link", "set", "lo", "up"]).is_ok();
    // Looked for first: a network of our own without its loopback up would be none at all.
    powers.network = run("ip", &["-V"]).is_ok() && run("nft", &["-v"]).is_ok() && loopback();
    powers
}

fn run(program: &str, args: &[&str]) -> Outcome<()> {
    let done = Command::new(program).args(args).stdin(Stdio::null()).output().trying(program)?;
    if done.status.success() {
        return Ok(());
    }
    Err(Stuck(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim())))
}

/// Rules of the packet filter, until dropped.
#[derive(Debug)]
pub struct Filter(());

impl Filter {
    /// Drops this share (in percent) of the packets to and from these ports, on the loopback.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn loss(percent: u32, ports: &[u16]) -> Outcome<Self> {
        let rule =
            |of: &str| format!("tcp {of} {{ {} }} numgen random mod 100 < {percent} drop", list(ports));
        Self::rules(&[rule("dport"), rule("sport")])
    }

    /// Drops all packets to these ports, and none from them.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn one_way(ports: &[u16]) -> Outcome<Self> {
        Self::rules(&[format!("tcp dport {{ {} }} drop", list(ports))])
    }

    fn rules(rules: &[String]) -> Outcome<Self> {
        let chain = "type filter hook input priority 0;";
        let script = format!("table inet faults {{\nchain input {{\n{chain}\n{}\n}}\n}}\n", rules.join("\n"));
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .trying("nft")?;
        if let Some(mut input) = nft.stdin.take() {
            input.write_all(script.as_bytes()).trying("nft")?;
        }
        let done = nft.wait_with_output().trying("nft")?;
        if done.status.success() {
            return Ok(Self(()));
        }
        Err(Stuck(format!("nft: {}", String::from_utf8_lossy(&done.stderr).trim())))
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // If it fails the network is gone anyway, with the suite.
        let _ = run("nft", &["delete", "table", "inet", "faults"]);
    }
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// A small file system in memory, until dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// # Errors
    /// It cannot be mounted.
    pub fn mount(at: &Path, bytes: u64) -> Outcome<Self> {
        std::fs::create_dir_all(at).trying(at.display())?;
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .trying(format!("a tmpfs at {}", at.display()))?;
        Ok(Self(at.to_path_buf()))
    }

    /// Leaves no room on it, until the file is removed.
    ///
    /// # Errors
    /// It cannot be written at all.
    pub fn fill(&self) -> Outcome<PathBuf> {
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).trying(path.display())?;
        for size in [1 << 16, 1 << 12, 1 << 9, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
