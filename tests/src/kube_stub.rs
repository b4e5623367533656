//! An API server of a few lines: it answers what a test tells it to. The one mock of these tests, for lack of a cluster.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What comes back for a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A document with this status.
    Document(u16, Value),
    /// Events of a watch, then silence with the connection open.
    Watch(Vec<Value>),
    /// Events of a watch, then its regular end.
    WatchEnds(Vec<Value>),
    /// The beginning of an answer, then the connection is cut.
    Cut,
}

type Script = Box<dyn FnMut(&str) -> Answer + Send>;

/// A running stub. Dropping it ends its connections.
#[derive(Debug)]
pub struct Stub {
    /// Where it listens.
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Stub {
    /// Starts one; `script` is asked for the answer to each path in turn.
    ///
    /// # Errors
    /// There is no port or no thread.
    pub fn start(script: impl FnMut(&str) -> Answer + Send + 'static) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        std::thread::spawn({
            let (requests, open) = (requests.clone(), open.clone());
            move || {
                for stream in listener.incoming().flatten() {
                    if let Ok(stream) = stream.try_clone() {
                        open.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
                    }
                    let (requests, script) = (requests.clone(), script.clone());
                    // One thread a connection: a watch holds its own for as long as it likes.
                    std::thread::spawn(move || serve(stream, &requests, &script));
                }
            }
        });
        Ok(Self { address, requests, open })
    }

    /// Paths and queries asked for so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A kubeconfig in this directory that leads here.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn kubeconfig(&self, dir: &Path) -> std::io::Result<PathBuf> {
        let path = dir.join("kubeconfig");
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "stub",
            "clusters": [{ "name": "stub", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "stub", "user": { "token": "a-token" } }],
            "contexts": [{ "name": "stub", "context": { "cluster": "stub", "user": "stub" } }],
        });
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Answers one request, and closes.
fn serve(mut stream: TcpStream, requests: &Mutex<Vec<String>>, script: &Mutex<Script>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).ok()? == 0 || header == "\r\n" {
            break;
        }
    }
    requests.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
    let answer = script.lock().unwrap_or_else(PoisonError::into_inner)(&path);
    let head = |status: u16, how: &str| {
        format!("HTTP/1.1 {status} Stub\r\nContent-Type: application/json\r\nConnection: close\r\n{how}\r\n\r\n")
    };
    let (events, ends) = match answer {
        Answer::Document(status, body) => {
            let body = body.to_string();
            let head = head(status, &format!("Content-Length: {}", body.len()));
            return stream.write_all(format!("{head}{body}").as_bytes()).ok();
        }
        Answer::Cut => {
            let head = head(200, "Content-Length: 100000");
            stream.write_all(format!("{head}{{\"kind\": \"PodLi").as_bytes()).ok()?;
            return stream.shutdown(Shutdown::Both).ok();
        }
        Answer::Watch(events) => (events, false),
        Answer::WatchEnds(events) => (events, true),
    };
    stream.write_all(head(200, "Transfer-Encoding: chunked").as_bytes()).ok()?;
    for event in events {
        let line = format!("{event}\n");
        stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).ok()?;
    }
    if ends {
        return stream.write_all(b"0\r\n\r\n").ok();
    }
    // Until one of both sides goes.
    let mut rest = String::new();
    reader.read_line(&mut rest).ok().map(drop)
}

/// A list of pods as of a version.
pub fn list(version: u32, pods: &[Value]) -> Answer {
    list_page(version, pods, None)
}

/// A page of it.
pub fn list_page(version: u32, pods: &[Value], next: Option<&str>) -> Answer {
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some(next) = next {
        metadata["continue"] = next.into();
    }
    Answer::Document(200, json!({ "kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": pods }))
}

/// An event of a watch.
pub fn event(kind: &str, pod: &Value) -> Value {
    json!({ "type": kind, "object": pod })
}

/// What the API server says when it does not do it.
pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

/// A pod with one container that runs, the way the API server writes one (shortened).
pub fn pod(uid: &str, name: &str, container: (&str, &str), version: u32) -> Value {
    let (container_name, container_id) = container;
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": name, "generateName": "web-7d4b9c6f5-", "namespace": "shop", "uid": uid,
            "resourceVersion": version.to_string(), "creationTimestamp": "2026-11-20T10:11:12Z",
            "labels": { "app.kubernetes.io/name": "web", "pod-template-hash": "7d4b9c6f5" },
            "annotations": { "kubernetes.io/config.source": "api" },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d4b9c6f5",
                "uid": "6f1c0f43-6d0b-4f1e-9a39-0f6f0f2f9a11", "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "nodeName": "n1", "restartPolicy": "Always", "serviceAccountName": "default",
            "containers": [{ "name": container_name, "image": "registry.example/web:1.4", "resources": {} }],
        },
        "status": {
            "phase": "Running", "hostIP": "192.0.2.10", "podIP": "10.42.0.7", "qosClass": "Burstable",
            "conditions": [{ "type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-11-20T10:11:15Z" }],
            "containerStatuses": [{
                "name": container_name, "ready": true, "restartCount": 0, "started": true,
                "image": "registry.example/web:1.4", "imageID": "registry.example/web@sha256:2fbd",
                "containerID": format!("containerd://{container_id}"),
                "state": { "running": { "startedAt": "2026-11-20T10:11:14Z" } }, "lastState": {},
            }],
        },
    })
}
