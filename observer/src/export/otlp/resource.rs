//! Whom a signal is about, as attributes of a resource.

use crate::export::Entity;
use crate::proc::base_name;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use std::collections::BTreeMap;

/// Attributes by name. Two of the same attributes are the same resource.
pub(super) type Attributes = BTreeMap<String, String>;

/// Configured attributes that name one workload belong to observer itself, not to what it looks at.
const OF_ONE_WORKLOAD: [&str; 5] = ["service.", "telemetry.", "process.", "container.", "k8s."];
/// Of these, those that hold for everything on the node.
const OF_ALL: [&str; 2] = ["k8s.cluster.", "k8s.node."];

/// What is known of this host and this observer.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    /// Name of the host.
    pub(super) host_name: String,
    /// Machine id.
    pub(super) host_id: Option<String>,
    /// Name of the node in Kubernetes.
    pub(super) node_name: Option<String>,
    /// Attributes of the settings.
    pub(super) configured: Vec<(String, String)>,
}

impl Own {
    /// Observer itself.
    pub(super) fn observer(&self) -> Attributes {
        let mut attributes = self.host();
        insert(&mut attributes, "service.name", Some("observer"));
        insert(&mut attributes, "service.version", Some(env!("CARGO_PKG_VERSION")));
        attributes.extend(self.configured.iter().cloned());
        attributes
    }

    /// A process that is looked at. Without its id: that would make a series of metrics for every process there ever was.
    pub(super) fn of(&self, entity: &Entity) -> Attributes {
        let mut attributes = self.host();
        let begins = |key: &str, list: &[&str]| list.iter().any(|prefix| key.starts_with(prefix));
        let holds = |(key, _): &&(String, String)| !begins(key, &OF_ONE_WORKLOAD) || begins(key, &OF_ALL);
        attributes.extend(self.configured.iter().filter(holds).cloned());
        let exe = entity.exe.as_deref();
        let name = exe.map(base_name).unwrap_or(&entity.comm);
        insert(&mut attributes, "process.executable.name", Some(name));
        insert(&mut attributes, "process.executable.path", exe);
        if let Some(runtime) = entity.runtime.as_deref() {
            let (name, version) = runtime.split_at(runtime.find(|c: char| c.is_ascii_digit()).unwrap_or(runtime.len()));
            insert(&mut attributes, "process.runtime.name", Some(name));
            insert(&mut attributes, "process.runtime.version", Some(version));
        }
        insert(&mut attributes, "container.id", entity.container.as_ref().map(|container| container.id.as_str()));
        if let Some(pod) = &entity.pod {
            insert(&mut attributes, "k8s.pod.uid", Some(&pod.uid));
            insert(&mut attributes, "k8s.pod.name", pod.name.as_deref());
            insert(&mut attributes, "k8s.namespace.name", pod.namespace.as_deref());
            insert(&mut attributes, "k8s.container.name", pod.container.as_deref());
        }
        attributes
    }

    fn host(&self) -> Attributes {
        let mut attributes = Attributes::new();
        // In a pod the name of the host is the pod's.
        let name = self.node_name.as_deref().unwrap_or(&self.host_name);
        insert(&mut attributes, "host.name", Some(name));
        insert(&mut attributes, "host.id", self.host_id.as_deref());
        insert(&mut attributes, "os.type", Some("linux"));
        insert(&mut attributes, "k8s.node.name", self.node_name.as_deref());
        attributes
    }
}

fn insert(attributes: &mut Attributes, key: &str, value: Option<&str>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        attributes.insert(key.to_owned(), value.to_owned());
    }
}

/// A resource of these attributes.
pub(super) fn resource(attributes: &Attributes) -> Resource {
    let attributes = attributes.iter().map(|(key, value)| text(key, value)).collect();
    Resource { attributes, ..Resource::default() }
}

/// An attribute that is a text.
pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

/// An attribute.
pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
