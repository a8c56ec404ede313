//! What the supervisor does when its disk does not do what it should.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod history_support;

use std::{fs, process::Command};

use history_support::{BYSTANDER, Site, VICTIM, binary::Daemon, within};
use nix::sys::signal::Signal;

/// The disk fills up, a ward crashes, there is room again.
async fn survives(site: &Site, mut supervisor: Daemon, fill: impl FnOnce(), make_room: impl FnOnce()) {
    let _node = site.node().await;
    site.runs(VICTIM, 1).await;
    site.runs(BYSTANDER, 1).await;
    let (code, out, _) = site.command(&["status"]).await;
    assert_eq!(code, 0, "{out}");
    let confirmed = site.count("event");
    fill();

    // It goes on healing, and says what is wrong.
    let mut incarnation = 1;
    while site.picture().await.supervisor.unwrap().history.unwrap().not_written_since.is_none() {
        site.crash(VICTIM);
        incarnation += 1;
        site.runs(VICTIM, incarnation).await;
    }
    site.crash(VICTIM);
    incarnation += 1;
    site.runs(VICTIM, incarnation).await;
    supervisor.says("history: not written:").await;
    let (code, out, _) = site.command(&["status"]).await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("history: not written since") && out.contains("the disk is full"), "{out}");
    let (_, out, _) = site.command(&["status", "-o", "json"]).await;
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status["supervisor"]["history"]["not_written_why"], "the disk is full");
    let told = |text: &str| format!("runs, incarnation {text}");
    let events = site.events().await;
    let last = told(&incarnation.to_string());
    assert!(events.iter().any(|e| e.text == last), "what is not written is told from memory");
    assert!(site.count("event") >= confirmed, "what was confirmed is there");
    assert_eq!(site.count(&format!("event WHERE text = '{last}'")), 0);

    make_room();
    supervisor.says("history: written again").await;
    site.until(|fleet| {
        let history = fleet.supervisor.as_ref().unwrap().history.as_ref().unwrap();
        history.not_written_since.is_none().then_some(())
    })
    .await;
    site.rests().await;
    assert_eq!(site.count(&format!("event WHERE text = '{last}'")), 1);
    assert_eq!(site.count("event WHERE text LIKE 'the history is written again, nothing is missing'"), 1);
    assert_eq!(site.starts(BYSTANDER).len(), 1);
    assert_eq!(site.command(&["status"]).await.0, 0);
    site.is_whole();
    supervisor.signal(Signal::SIGTERM);
    assert!(supervisor.ended().await.success());
    site.is_whole();
}

#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_holds_no_restart_up_and_nothing_confirmed_is_lost() {
    within(async {
        let site = Site::new("intensity = 100");
        let flag = site.dir.path().join("full");
        let supervisor = site.supervisor(&[("WARDKEEP_DISK_FULL", flag.to_str().unwrap())]).await;
        let (fill, make_room) = (|| fs::write(&flag, "").unwrap(), || fs::remove_file(&flag).unwrap());
        survives(&site, supervisor, fill, make_room).await;
    })
    .await;
}

/// A file system of one megabyte, gone with the test.
struct Tmpfs<'a>(&'a std::path::Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_on_a_real_file_system_without_room() {
    within(async {
        let site = Site::new("intensity = 100");
        let data = site.dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&data).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: nothing can be mounted here");
            return;
        }
        let _tmpfs = Tmpfs(&data);
        let supervisor = site.supervisor(&[]).await;
        let filler = data.join("filler");
        let fill = || {
            use std::io::Write as _;
            let mut file = fs::File::create(&filler).unwrap();
            while file.write_all(&[0; 4_096]).is_ok() {}
        };
        survives(&site, supervisor, fill, || fs::remove_file(&filler).unwrap()).await;
    })
    .await;
}

#[tokio::test]
async fn a_history_that_cannot_be_used_is_refused_in_one_line_and_left_as_it_is() {
    within(async {
        let site = Site::new("");
        let mut first = site.supervisor(&[]).await;
        site.picture().await;
        first.signal(Signal::SIGTERM);
        assert!(first.ended().await.success());
        let refused = async |says: &str| {
            let before = fs::read(site.file()).unwrap();
            let config = site.dir.path().join("supervisor.toml");
            let mut daemon = Daemon::start(&["supervisor", "--config", config.to_str().unwrap()], &[]);
            assert_eq!(daemon.ended().await.code(), Some(1), "{:#?}", daemon.said);
            assert_eq!(daemon.said.len(), 1, "{:#?}", daemon.said);
            assert!(
                daemon.said[0].contains("history.db") && daemon.said[0].contains(says),
                "{:#?}",
                daemon.said
            );
            assert_eq!(fs::read(site.file()).unwrap(), before);
        };
        let sql = |sql: &str| rusqlite::Connection::open(site.file()).unwrap().execute_batch(sql).unwrap();
        sql("PRAGMA user_version = 7; PRAGMA wal_checkpoint(TRUNCATE);");
        refused("later wardkeep (version 7, this one knows 2)").await;
        fs::write(site.file(), "a note to self, left here by mistake, and it is no database at all").unwrap();
        refused("it is damaged").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_data_directory_the_status_says_that_nothing_is_kept() {
    within(async {
        let site = Site::new("");
        let mut supervisor = Daemon::start(&["supervisor", "--listen", &site.address], &[]);
        supervisor.says("supervisor up").await;
        let (code, out, _) = site.command(&["status"]).await;
        assert_eq!(code, 0);
        assert!(out.contains("history in memory only; --data-dir would keep it"), "{out}");
        let (_, out, _) = site.command(&["status", "-o", "json"]).await;
        let status: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(status["supervisor"]["history"]["durable"], false);
    })
    .await;
}
