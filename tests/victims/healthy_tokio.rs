//! A healthy idle tokio program: workers parked, tasks that wait for a message, a timer and a connection, a job of the
//! blocking pool that waits for work with the lock of its queue, and another one behind it.

#![expect(clippy::unwrap_used, reason = "a program that cannot reach its state dies aloud")]

use std::io::Read;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    let (jobs, queue) = mpsc::channel::<u32>();
    let queue = Arc::new(Mutex::new(queue));
    let started = Arc::new(std::sync::Barrier::new(3));
    for _ in 0..2 {
        let (queue, started) = (Arc::clone(&queue), Arc::clone(&started));
        runtime.spawn_blocking(move || {
            started.wait();
            while queue.lock().unwrap().recv().is_ok() {}
        });
    }
    let (news, mut paper) = tokio::sync::mpsc::channel::<u32>(1);
    runtime.spawn(async move { paper.recv().await });
    runtime.spawn(async { tokio::time::sleep(Duration::from_secs(3600)).await });
    runtime.spawn(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.accept().await.map(|_| ())
    });
    started.wait();
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
    drop((news, jobs));
    runtime.shutdown_background();
}
