mod cli_support;
use cli_support::*;
#[tokio::test]
async fn peek() {
    for fleet in [fleet(), ill_fleet()] {
        let cluster = Cluster::start(Script { fleet, ..Default::default() }).await;
        for args in [&["status"][..], &["node","ls"], &["node","show","trigram"], &["ward","ls"], &["ward","show","sqlite/search"], &["group","ls"], &["group","show","search"], &["events"]] {
            let mut c = command(args);
            c.args(["--supervisor", &cluster.address]).env("COLUMNS", "80");
            let ran = finish(c).await;
            println!("$ wardkeep {args:?}  -> {}\n{}{}", ran.code, ran.stdout, ran.stderr);
        }
    }
    for args in [&["--help"][..], &["node","restart","--help"], &["call","--help"]] { println!("{}", run(args).await.stdout); }
}
