//! The conversation with an API server, over a real socket; the server is a stub, for lack of a cluster.

#[path = "../../../tests/src/kube_stub.rs"]
#[expect(unreachable_pub, reason = "it is public where it lives")]
mod kube_stub;

use super::book::Book;
use super::*;
use crate::proc::{Container, Pod};
use kube_stub::{Answer, Stub, event, list, list_page, pod, status};
use serde_json::{Value, json};
use std::time::Instant;

const SOON: Duration = Duration::from_secs(20);
const WEB: &str = "3f2a6b1c-0d4e-4f5a-8b6c-7d8e9f0a1b2c";
const NEW: &str = "4f2a6b1c-0d4e-4f5a-8b6c-7d8e9f0a1b2c";
const ID: &str = "a3f1e0b2c4d5968778695a4b3c2d1e0fa3f1e0b2c4d5968778695a4b3c2d1e0f";

fn web(version: u32) -> Value {
    pod(WEB, "web-7d4b9c6f5-x2x9p", ("server", ID), version)
}

fn new(version: u32) -> Value {
    pod(NEW, "web-7d4b9c6f5-new42", ("server", "b3"), version)
}

/// Answers in this order, whatever is asked; then silence.
fn in_order(answers: Vec<Answer>) -> Stub {
    let mut answers = answers.into_iter();
    Stub::start(move |_| answers.next().unwrap_or(Answer::Watch(Vec::new()))).expect("a stub")
}

struct Watched {
    names: Names,
    stub: Stub,
    _dir: tempfile::TempDir,
}

impl Watched {
    fn start(stub: Stub) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = stub.kubeconfig(dir.path()).expect("a kubeconfig");
        let settings =
            Settings { refused_pause: Duration::from_millis(50), ..Settings::new("n1".to_owned(), Some(kubeconfig)) };
        Self { names: Names::start(settings).expect("a thread"), stub, _dir: dir }
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let until = Instant::now() + SOON;
        loop {
            let snapshot = self.names.snapshot();
            if holds(&snapshot) {
                return snapshot;
            }
            assert!(Instant::now() < until, "{what}: {snapshot:?} {:?} {:?}", self.names.lost(), self.stub.requests());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_list_gives_names_owner_and_containers() {
    let watched = Watched::start(in_order(vec![list(10, &[web(9)])]));
    let pods = watched.until("the list", |pods| pods.pod(WEB).is_some());
    let names = pods.pod(WEB).expect("listed");
    assert_eq!((names.namespace.as_str(), names.name.as_str()), ("shop", "web-7d4b9c6f5-x2x9p"));
    assert_eq!(names.owner, Some(Owner { kind: "ReplicaSet".into(), name: "web-7d4b9c6f5".into() }));
    assert_eq!(names.labels.get("app.kubernetes.io/name").map(String::as_str), Some("web"));

    let mut pod = Pod { uid: WEB.into(), ..Pod::default() };
    pods.fill(&mut pod, Some(&Container { id: ID.into(), runtime: "containerd".into() }));
    let expected = Pod {
        namespace: Some("shop".into()),
        name: Some("web-7d4b9c6f5-x2x9p".into()),
        uid: WEB.into(),
        container: Some("server".into()),
    };
    assert_eq!(pod, expected);
    // The pause container has no name, a pod that is not known none at all.
    pods.fill(&mut pod, Some(&Container { id: "ff".into(), runtime: "containerd".into() }));
    assert_eq!(pod.container, None);
    let mut other = Pod { uid: "other".into(), ..Pod::default() };
    pods.fill(&mut other, None);
    assert_eq!(other, Pod { uid: "other".into(), ..Pod::default() });

    let until = Instant::now() + SOON;
    while watched.stub.requests().len() < 2 && Instant::now() < until {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let requests = watched.stub.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests.iter().all(|path| path.contains("fieldSelector=spec.nodeName%3Dn1")), "{requests:?}");
    assert!(requests[0].starts_with("/api/v1/pods?") && requests[0].contains("limit=500"), "{requests:?}");
    assert!(requests[1].contains("watch=true") && requests[1].contains("resourceVersion=10"), "{requests:?}");
    assert_eq!(watched.names.lost(), BTreeMap::new());
}

#[test]
fn static_pods_are_found_by_the_hash_of_their_manifest() {
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    let mut mirror = web(9);
    mirror["metadata"]["name"] = "kube-apiserver-n1".into();
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH, "kubernetes.io/config.source": "file" });
    let watched = Watched::start(in_order(vec![list(10, &[mirror])]));
    let pods = watched.until("the list", |pods| pods.pod(HASH).is_some());
    let mut pod = Pod { uid: HASH.into(), ..Pod::default() };
    pods.fill(&mut pod, None);
    assert_eq!((pod.name.as_deref(), pod.uid.as_str()), (Some("kube-apiserver-n1"), HASH));
    assert_eq!(pods.pod(WEB), pods.pod(HASH), "also by the UID of its mirror");
}

#[test]
fn a_watch_brings_what_changes_and_goes_on_after_its_end() {
    let mut renamed = web(12);
    renamed["metadata"]["labels"]["app.kubernetes.io/name"] = "shop".into();
    let watched = Watched::start(in_order(vec![
        list(10, &[web(9)]),
        Answer::WatchEnds(vec![event("ADDED", &new(11)), event("MODIFIED", &renamed)]),
        Answer::Watch(vec![event("DELETED", &new(13))]),
    ]));
    let label = |pods: &Snapshot| pods.pod(WEB).and_then(|pod| pod.labels.get("app.kubernetes.io/name").cloned());
    watched.until("both", |pods| label(pods).as_deref() == Some("shop") && pods.pod(NEW).is_some());
    // The second watch goes on from where the first one ended.
    let until = Instant::now() + SOON;
    let resumed =
        |paths: &[String]| paths.iter().any(|path| path.contains("watch=true") && path.contains("resourceVersion=12"));
    while !resumed(&watched.stub.requests()) {
        assert!(Instant::now() < until, "{:?}", watched.stub.requests());
        std::thread::park_timeout(Duration::from_millis(5));
    }
    // Gone, and still known by name: the end of a finding about it comes later.
    let before = watched.names.version();
    watched.until("the deletion", |pods| pods.pod(NEW).is_some() && watched.names.version() >= before);
}

#[test]
fn pages_are_put_together() {
    let watched = Watched::start(in_order(vec![list_page(10, &[web(9)], Some("next")), list(10, &[new(9)])]));
    watched.until("both pages", |pods| pods.pod(WEB).is_some() && pods.pod(NEW).is_some());
    assert!(watched.stub.requests()[1].contains("continue=next"), "{:?}", watched.stub.requests());
}

#[test]
fn what_is_too_old_is_listed_again() {
    let expired = status(410, "Expired", "too old resource version: 10 (20)");
    let watched = Watched::start(in_order(vec![
        list(10, &[web(9)]),
        Answer::Watch(vec![event("ERROR", &expired)]),
        list(30, &[new(29)]),
    ]));
    watched.until("the second list", |pods| pods.pod(NEW).is_some());
    assert_eq!(watched.names.lost(), BTreeMap::from([("kube: expired", 1)]));
    // Also when the watch is refused at once.
    let watched =
        Watched::start(in_order(vec![list(10, &[web(9)]), Answer::Document(410, expired), list(30, &[new(29)])]));
    watched.until("the second list", |pods| pods.pod(NEW).is_some());
    assert_eq!(watched.names.lost(), BTreeMap::from([("kube: expired", 1)]));
}

#[test]
fn a_refusal_is_counted_and_asked_about_again() {
    let message = "pods is forbidden: User \"system:serviceaccount:observer:observer\" cannot list resource \"pods\" in API group \"\" at the cluster scope";
    let forbidden = || Answer::Document(403, status(403, "Forbidden", message));
    let watched = Watched::start(in_order(vec![forbidden(), forbidden(), list(10, &[web(9)])]));
    watched.until("permission", |pods| pods.pod(WEB).is_some());
    assert_eq!(watched.names.lost(), BTreeMap::from([("kube: refused", 2)]));
}

#[test]
fn lost_connections_are_made_again() {
    let watched = Watched::start(in_order(vec![
        Answer::Cut,
        list(10, &[web(9)]),
        Answer::Cut,
        Answer::Watch(vec![event("ADDED", &new(11))]),
    ]));
    watched.until("the pod after the cut", |pods| pods.pod(WEB).is_some() && pods.pod(NEW).is_some());
    let lost = watched.names.lost();
    assert!(lost.get("kube: connection").is_some_and(|count| *count >= 1), "{lost:?} {:?}", watched.stub.requests());
}

#[test]
fn nonsense_is_counted_and_survived() {
    let watched = Watched::start(in_order(vec![
        Answer::Document(200, json!([1, 2])),
        Answer::Document(500, json!("what")),
        list(10, &[json!({ "kind": "Pod", "metadata": { "name": "no-uid" } }), web(9)]),
    ]));
    watched.until("the list", |pods| pods.pod(WEB).is_some());
    let lost = watched.names.lost();
    assert_eq!(lost.get("kube: pod not kept"), Some(&1), "{lost:?}");
    assert!(lost.len() > 1, "{lost:?}");
}

#[test]
fn nobody_to_ask() {
    let names = Names::start(Settings::new("n1".into(), Some("/no/such/kubeconfig".into()))).expect("a thread");
    let until = Instant::now() + SOON;
    while names.lost().is_empty() {
        assert!(Instant::now() < until);
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert_eq!(names.lost(), BTreeMap::from([("kube: no client", 1)]));
    assert!(names.snapshot().pod(WEB).is_none());
}

#[test]
fn names_outlive_their_pod_for_a_while_and_the_book_is_bounded() {
    let api = |value: Value| serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(value).expect("a pod");
    let (mut book, now) = (Book::default(), Instant::now());
    assert!(book.apply(api(web(1))) && book.apply(api(new(1))));
    book.delete(&api(web(2)), now);
    let later = |seconds| now + Duration::from_secs(seconds);
    assert!(book.snapshot(later(299)).pod(WEB).is_some());
    let pods = book.snapshot(later(301));
    assert!(pods.pod(WEB).is_none() && pods.pod(NEW).is_some());
    // A list that does not name it: gone as well.
    book.begin_list();
    book.end_list(later(302));
    assert!(book.snapshot(later(601)).pod(NEW).is_some());
    assert!(book.snapshot(later(603)).pod(NEW).is_none());
    let kept = (0..10_000).filter(|n| book.apply(api(pod(&format!("uid-{n}"), "p", ("c", "id"), 1)))).count();
    assert_eq!(kept, 4096);
    assert!(book.apply(api(pod("uid-1", "again", ("c", "id"), 2))), "a known one still changes");
}
