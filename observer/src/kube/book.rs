//! Pods by their UID. No I/O, no clock of its own.

use crate::proc::{Container, Pod};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod as ApiPod};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A pod that is gone keeps its names this long: the end of a finding about it comes later.
const REMEMBER: Duration = Duration::from_secs(300);
/// Pods that are kept at most. A node has 110 by default, and hardly ever more than 500.
const MOST_PODS: usize = 4096;
/// Where the kubelet says which manifest a static pod comes from: in cgroup paths this stands for its UID.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// What made a pod (`ReplicaSet`, `DaemonSet`, `Node` for static pods, …).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Kind of the object.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A pod as the API server knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNames {
    /// UID.
    pub uid: String,
    /// Hash of the manifest, of a static pod.
    pub config_hash: Option<String>,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What controls it.
    pub owner: Option<Owner>,
    /// Names of its containers by id.
    pub containers: BTreeMap<String, String>,
}

impl PodNames {
    /// `None` if it lacks what every pod has.
    fn of(pod: ApiPod) -> Option<Self> {
        let meta = pod.metadata;
        let owners = meta.owner_references.unwrap_or_default();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
        let status = pod.status.unwrap_or_default();
        let lists = [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses];
        Some(Self {
            uid: meta.uid?,
            config_hash: meta.annotations.and_then(|mut annotations| annotations.remove(CONFIG_HASH)),
            namespace: meta.namespace?,
            name: meta.name?,
            labels: meta.labels.unwrap_or_default(),
            owner: owner.map(|owner| Owner { kind: owner.kind, name: owner.name }),
            containers: lists.into_iter().flatten().flatten().filter_map(container).collect(),
        })
    }
}

/// Id and name. The id is `RUNTIME://ID`, and absent before the container has started.
fn container(status: ContainerStatus) -> Option<(String, String)> {
    let id = status.container_id?;
    let (_, id) = id.split_once("://")?;
    (!id.is_empty()).then(|| (id.to_owned(), status.name))
}

/// All pods at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pods: HashMap<String, Arc<PodNames>>,
}

impl Snapshot {
    /// By UID, or by what stands for it in the cgroup path of a static pod.
    pub fn pod(&self, uid: &str) -> Option<&Arc<PodNames>> {
        self.pods.get(uid)
    }

    /// Fills in the names of a pod and of the container in it; the UID stays that of the cgroup path.
    pub fn fill(&self, pod: &mut Pod, container: Option<&Container>) {
        let Some(names) = self.pod(&pod.uid) else { return };
        pod.namespace = Some(names.namespace.clone());
        pod.name = Some(names.name.clone());
        pod.container = container.and_then(|container| names.containers.get(&container.id)).cloned();
    }
}

/// The pods that were told of.
#[derive(Debug, Default)]
pub(super) struct Book {
    pods: HashMap<String, (Arc<PodNames>, Option<Instant>)>,
    /// While a list comes in: what it has named so far.
    listed: Option<HashSet<String>>,
}

impl Book {
    /// A new or changed pod; false if it is not kept.
    pub(super) fn apply(&mut self, pod: ApiPod) -> bool {
        let Some(names) = PodNames::of(pod) else { return false };
        if self.pods.len() >= MOST_PODS && !self.pods.contains_key(&names.uid) {
            return false;
        }
        if let Some(listed) = &mut self.listed {
            listed.insert(names.uid.clone());
        }
        self.pods.insert(names.uid.clone(), (Arc::new(names), None));
        true
    }

    /// A pod is gone.
    pub(super) fn delete(&mut self, pod: &ApiPod, now: Instant) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some((_, gone)) = self.pods.get_mut(uid) {
            *gone = Some(now);
        }
    }

    /// A list begins: whatever it does not name is gone.
    pub(super) fn begin_list(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// The list is complete.
    pub(super) fn end_list(&mut self, now: Instant) {
        let Some(listed) = self.listed.take() else { return };
        for (uid, (_, gone)) in &mut self.pods {
            if !listed.contains(uid) {
                gone.get_or_insert(now);
            }
        }
    }

    /// Forgets who is long gone, and answers with the others.
    pub(super) fn snapshot(&mut self, now: Instant) -> Snapshot {
        self.pods.retain(|_, (_, gone)| gone.is_none_or(|gone| now.duration_since(gone) < REMEMBER));
        let mut pods = HashMap::with_capacity(self.pods.len());
        // A static pod that was made anew has the hash of the one before: those that live come last.
        let (gone, living): (Vec<_>, Vec<_>) = self.pods.values().partition(|(_, gone)| gone.is_some());
        for (names, _) in gone.into_iter().chain(living) {
            pods.extend(names.config_hash.clone().map(|hash| (hash, names.clone())));
            pods.insert(names.uid.clone(), names.clone());
        }
        Snapshot { pods }
    }
}
