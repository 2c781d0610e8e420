//! Who is let in, and who is not.

use super::*;

/// Tells one node of another, and not the other way round.
fn point(from: &TestNode, id: u8, at: &TestNode) {
    from.transport.set_members(vec![(id, at.transport.local_address())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_authority_is_refused_both_ways() {
    let (ours, theirs) = (Authority::of(7), Authority::of(7));
    let (own, foreign) = (ours.node(1), theirs.node(2));
    // We dial.
    point(&own, 2, &foreign);
    until("our refusal", || own.counts(2).refused_certificates > 0).await;
    until("their notice", || foreign.strangers() > 0).await;
    own.transport.set_members(Vec::new());
    // They dial, and believe us.
    let both = ours.scratch.0.join("both.crt");
    let pem = |authority: &Authority| fs::read_to_string(authority.ca.join("ca.crt")).unwrap();
    fs::write(&both, pem(&ours) + &pem(&theirs)).unwrap();
    let trusting = TestNode::of(Identity::read(&theirs.files(2, &both)).unwrap());
    let before = own.strangers();
    point(&trusting, 1, &own);
    until("our refusal of who dials", || own.strangers() > before).await;
    until("their notice", || trusting.counts(1).refused_certificates > 0).await;
    assert!(own.transport.connected().is_empty() && trusting.transport.connected().is_empty());
    assert_eq!(trusting.counts(1).connections, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_certificate_of_somebody_else_is_refused() {
    let authority = Authority::of(7);
    let (one, two) = (authority.node(1), authority.node(2));
    // Node 2 where node 3 should be.
    point(&one, 3, &two);
    until("the refusal of the wrong id", || one.counts(3).refused_certificates > 0).await;
    assert_eq!(one.counts(3).connections, 0);
    // Node 9, which is no member.
    let nine = authority.node(9);
    let before = one.strangers();
    point(&nine, 1, &one);
    until("the refusal of who is no member", || one.strangers() > before).await;
    until("its notice", || nine.counts(1).refused_certificates > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_cluster_is_refused() {
    // One authority cannot vouch for two clusters, so two are believed here.
    let (ours, theirs) = (Authority::of(7), Authority::of(8));
    let both = ours.scratch.0.join("both.crt");
    let pem = |authority: &Authority| fs::read_to_string(authority.ca.join("ca.crt")).unwrap();
    fs::write(&both, pem(&ours) + &pem(&theirs)).unwrap();
    let one = TestNode::of(Identity::read(&ours.files(1, &both)).unwrap());
    let two = TestNode::of(Identity::read(&theirs.files(2, &both)).unwrap());
    point(&one, 2, &two);
    point(&two, 1, &one);
    until("both refusals", || one.counts(2).refused_certificates > 0 && two.counts(1).refused_certificates > 0).await;
    assert_eq!((one.counts(2).connections, two.counts(1).connections), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_renewed_while_connections_live_on() {
    let (old, new) = (Authority::of(7), Authority::of(7));
    let both = old.scratch.0.join("both.crt");
    let pem = |authority: &Authority| fs::read_to_string(authority.ca.join("ca.crt")).unwrap();
    fs::write(&both, pem(&old) + &pem(&new)).unwrap();
    let (one, mut two) = (old.node(1), old.node(2));
    introduce(&[&one, &two]).await;
    let connections = (one.counts(2).connections, two.counts(1).connections);
    // First all believe both authorities, then each gets a certificate of the new one, then the old one goes.
    for node in [&one, &two] {
        let renew = |identity| node.transport.set_identity(identity).unwrap();
        renew(Identity::read(&old.files(node.id, &both)).unwrap());
        renew(Identity::read(&new.files(node.id, &both)).unwrap());
        renew(new.identity(node.id));
    }
    one.transport.tell(2, Channel::Control, b"as before".to_vec());
    assert_eq!(next(&mut two.inboxes.control).await.payload, b"as before");
    assert_eq!((one.counts(2).connections, two.counts(1).connections), connections);
    // A node that knows the new authority alone gets in, one of the old authority does not any more.
    let (three, four) = (new.node(3), old.node(4));
    one.transport.set_members(vec![two.place(), three.place(), four.place()]);
    point(&three, 1, &one);
    point(&four, 1, &one);
    one.knows(3).await;
    three.knows(1).await;
    until("the refusal of the old authority", || four.counts(1).refused_certificates > 0).await;
    assert_eq!(four.counts(1).connections, 0);
    // Another's identity is not taken.
    assert!(matches!(one.transport.set_identity(new.identity(2)), Err(StartError::NotMine { certificate: 2, own: 1 })));
    let other = Authority::of(8).identity(1);
    assert!(matches!(one.transport.set_identity(other), Err(StartError::Cluster { certificate: 8, own: 7 })));
}

#[test]
fn files_that_are_no_identity_are_told_apart() {
    type Change<'a> = &'a dyn Fn(&mut IdentityFiles);
    let (ours, theirs) = (Authority::of(7), Authority::of(7));
    let ca = ours.ca.join("ca.crt");
    let good = ours.files(1, &ca);
    let other = ours.files(2, &ca);
    let told = |change: Change<'_>| {
        let mut files = good.clone();
        change(&mut files);
        Identity::read(&files).unwrap_err().to_string()
    };
    let missing = ours.scratch.0.join("nothing");
    let empty = ours.scratch.0.join("empty");
    fs::write(&empty, "").unwrap();
    let cases: [(Change<'_>, &str); 9] = [
        (&|files| files.ca = missing.clone(), "nothing: No such file"),
        (&|files| files.certificate = missing.clone(), "nothing: No such file"),
        (&|files| files.private_key = missing.clone(), "nothing: No such file"),
        (&|files| files.ca = empty.clone(), "empty: holds no certificate"),
        (&|files| files.private_key = empty.clone(), "empty: holds no private key"),
        (&|files| files.private_key = other.private_key.clone(), "is not the key of"),
        (&|files| files.ca = theirs.ca.join("ca.crt"), "not issued by an authority of"),
        (&|files| files.ca = other.certificate.clone(), "may not sign others"),
        (&|files| (files.certificate, files.private_key) = (ca.clone(), ours.ca.join("ca.key")), "names no node"),
    ];
    for (change, words) in cases {
        let told = told(change);
        assert!(told.contains(words), "{told:?} does not say {words:?}");
    }
    let mut cluster = crate::config::Cluster {
        path_key: None,
        id: 7,
        key: None,
        slots: 256,
        beats_anyway: false,
        beats: crate::config::Beats::STANDARD,
        beat_keys: Vec::new(),
        identity: None,
        port: 4201,
        silent_after: std::time::Duration::from_secs(30),
        down_after: std::time::Duration::from_secs(10),
    };
    assert!(Identity::load(&cluster).unwrap().is_none());
    cluster.identity = Some(good);
    assert_eq!(Identity::load(&cluster).unwrap().unwrap().name(), pki::NodeName { node: 1, cluster: 7 });
    cluster.id = 8;
    assert!(Identity::load(&cluster).unwrap_err().to_string().contains("is for cluster 7, this is cluster 8"));
}

#[tokio::test]
async fn a_node_starts_as_nobody_else() {
    let authority = Authority::of(7);
    let started = start(authority.identity(1), 2, ANY, Vec::new(), &Breakers::default());
    assert!(matches!(started, Err(StartError::NotMine { certificate: 1, own: 2 })));
    let taken = authority.node(3);
    let again = start(authority.identity(3), 3, taken.transport.local_address(), Vec::new(), &Breakers::default());
    assert!(matches!(again, Err(StartError::Socket { .. })));
}
