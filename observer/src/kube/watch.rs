//! The conversation with the API server.

use super::book::Book;
use super::{Settings, Shared};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_pods};
use kube::{Api, Client, Config};
use std::pin::pin;
use std::time::{Duration, Instant};

/// Pods in one page of a list.
const PAGE: u32 = 500;
/// Pause after settings that do not lead to a client: the files may come later.
const NO_CLIENT_PAUSE: Duration = Duration::from_secs(60);
/// Pause before everything is listed again.
const EXPIRED_PAUSE: Duration = Duration::from_secs(1);
/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Watches until it is dropped.
pub(super) async fn run(settings: &Settings, shared: &Shared) {
    let mut log = Log::default();
    let mut book = Book::default();
    loop {
        match client(settings).await {
            Ok(client) => {
                let pause = watch(client, settings, shared, &mut book, &mut log).await;
                tokio::time::sleep(pause).await;
            }
            Err(why) => {
                shared.lose("kube: no client", 1);
                log.trouble(&format!("pods have no names: {why}"));
                tokio::time::sleep(NO_CLIENT_PAUSE).await;
            }
        }
    }
}

async fn client(settings: &Settings) -> Result<Client, String> {
    let mut config = match &settings.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| format!("{}: {}", path.display(), chain(&error)))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|error| format!("{}: {}", path.display(), chain(&error)))?
        }
        None => Config::incluster().map_err(|error| {
            format!("this is no pod with a service account, and no kubeconfig is set ({})", chain(&error))
        })?,
    };
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(|error| chain(&error))
}

/// Takes what comes until it has to begin anew, after the pause that it answers with.
async fn watch(client: Client, settings: &Settings, shared: &Shared, book: &mut Book, log: &mut Log) -> Duration {
    let pods: Api<Pod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", settings.node)).page_size(PAGE);
    let mut events = pin!(watch_pods(pods, config).default_backoff());
    while let Some(event) = events.next().await {
        let now = Instant::now();
        match event {
            Ok(Event::Init) => {
                book.begin_list();
                continue;
            }
            Ok(Event::InitApply(pod)) => {
                keep(book, pod, shared);
                continue;
            }
            Ok(Event::InitDone) => {
                book.end_list(now);
                log.well();
            }
            Ok(Event::Apply(pod)) => keep(book, pod, shared),
            Ok(Event::Delete(pod)) => book.delete(&pod, now),
            Err(error) => {
                let reason = reason(&error);
                shared.lose(reason, 1);
                if reason == REFUSED {
                    log.trouble(&format!(
                        "the API server refuses to list and watch pods, which have no names here: {}; \
                         allow it (RBAC: get, list, watch of pods), or leave node-name unset",
                        chain(&error)
                    ));
                    return settings.refused_pause;
                }
                // Of a watch that never began, kube 5.0 would ask for the same version for ever.
                if reason == EXPIRED && matches!(error, watcher::Error::WatchStartFailed(_)) {
                    return EXPIRED_PAUSE;
                }
                if reason != EXPIRED {
                    log.trouble(&format!("names of pods may be old: {}", chain(&error)));
                }
                continue;
            }
        }
        shared.publish(book.snapshot(now));
    }
    settings.refused_pause
}

fn keep(book: &mut Book, pod: Pod, shared: &Shared) {
    if !book.apply(pod) {
        shared.lose("kube: pod not kept", 1);
    }
}

const REFUSED: &str = "kube: refused";
/// What the watch wanted to go on from is no longer there (410): it lists again.
const EXPIRED: &str = "kube: expired";
const CONNECTION: &str = "kube: connection";

fn reason(error: &watcher::Error) -> &'static str {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    let code = match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => status.code,
        InitialListFailed(_) | WatchStartFailed(_) | WatchFailed(_) => 0,
        NoResourceVersion => return "kube: answer",
    };
    match code {
        401 | 403 => REFUSED,
        410 => EXPIRED,
        0 => CONNECTION,
        _ => "kube: answer",
    }
}

/// One line for each trouble, not for each try.
#[derive(Debug, Default)]
struct Log {
    trouble: bool,
}

impl Log {
    fn trouble(&mut self, what: &str) {
        if std::mem::replace(&mut self.trouble, true) {
            log::debug!("{what}");
        } else {
            log::warn!("{what}");
        }
    }

    fn well(&mut self) {
        if std::mem::take(&mut self.trouble) {
            log::info!("the API server answers again");
        }
    }
}

/// An error with its causes, in one line, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    // Errors of the API server come with a dump of the whole status behind them.
    let text = text.split(" (Status {").next().unwrap_or(&text);
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
