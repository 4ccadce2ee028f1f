//! `serve`: a camera's frames and posted pictures, classified as long as the machine runs.

mod engine;
mod fair;
mod gate;
mod http;
mod metrics;
#[cfg(target_os = "linux")]
mod sandbox;

use super::answer::AnswerArgs;
use super::{ChoiceArgs, RunArgs, camera, preprocess};
use anyhow::Context;
use clap::Args;
use edge_infer::Error;
use edge_infer::board::Board;
use edge_infer::image::Preprocessor;
use edge_infer::source::address::Address;
use edge_infer::source::camera::Notice;
use engine::Shared;
use http::{Limits, Web};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often sensors are read.
const SENSORS: Duration = Duration::from_secs(2);
/// How long the end waits for an inference or a picture under way.
const LAST_WORK: Duration = Duration::from_millis(500);
/// Characters that make a token worth the name.
const SHORTEST_TOKEN: usize = 16;

/// Classifies a camera's frames and posted pictures; a web page shows the live picture.
#[derive(Args)]
#[command(after_help = "\
Paths: / (page), /healthz, /metrics (Prometheus), /v1/state, /v1/frame, POST /v1/classify?top=5 (the body is the picture).

Examples:
  edge-infer serve --model r18q.onnx --camera /dev/ttyACM0
  curl --data-binary @cat.jpg http://127.0.0.1:8080/v1/classify
  edge-infer serve --model r18q.onnx --listen 0.0.0.0:8080 --token-file token

Environment: EDGE_TOKEN_FILE stands for --token-file.")]
pub struct ServeArgs {
    /// ONNX model, int8 QDQ or float.
    #[arg(short, long)]
    model: PathBuf,
    #[command(flatten)]
    choice: ChoiceArgs,
    #[command(flatten)]
    answer: AnswerArgs,
    /// A camera: v4l2:DEVICE[:WIDTHxHEIGHT[@FPS][:FORMAT]], libcamera:[NUMBER], http://HOST/PATH, exec:COMMAND;
    /// or edge-infer's own firmware at /dev/ttyACM0[:BAUD], tcp:HOST:PORT, unix:PATH, a file, or `-`.
    #[arg(short, long, value_name = "ADDRESS")]
    camera: Option<Address>,
    #[command(flatten)]
    camera_options: camera::CameraArgs,
    /// Address and port. Any but loopback needs --token-file.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// File with the token that clients send as `Authorization: Bearer TOKEN`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Most bytes of a posted picture.
    #[arg(long, default_value_t = 8 << 20, value_parser = clap::value_parser!(u32).range(1024..=(64 << 20)))]
    max_body: u32,
    /// Most open connections. A newcomer takes the place of the address that has most of them, or is answered 503.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    max_connections: u16,
    /// Most requests a second from one address; more are answered 429.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_rate: u32,
    /// Most posted pictures that wait for the network. A newcomer takes the place of the address that has most of them, or is
    /// answered 503.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    queue: u16,
}

pub fn run(args: &ServeArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    let variable = std::env::var_os("EDGE_TOKEN_FILE").filter(|v| !v.is_empty()).map(PathBuf::from);
    let token = args.token_file.as_ref().or(variable.as_ref()).map(|p| read_token(p)).transpose()?;
    let loopback = http::is_loopback(&args.listen);
    if token.is_none() && !loopback {
        return Err(Error::Usage(format!("{} can be reached from elsewhere: that needs --token-file", args.listen)).into());
    }

    // Before anything is read that others have made, and before there are threads.
    #[cfg(target_os = "linux")]
    if !sandbox::enter(&args.model, args.camera.as_ref()).context("cannot restrict the access to files")? {
        eprintln!("this kernel has no Landlock: access to files is restricted by systemd's unit alone");
    }
    let model = run.load(&args.model, &args.choice)?;
    let record = preprocess(&model, &args.model)?;
    let camera_options = args.camera_options.options(&record, false)?;
    let (camera_input, posted_input) = (Preprocessor::new(record.clone())?, Preprocessor::new(record)?);
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": args.model.file_name().unwrap_or_default().to_string_lossy(),
        "isa": model.isa(),
        "threads": model.threads().to_string(),
    });
    let reader = args.answer.reader(&model)?;
    let (threads, isa) = (model.threads(), model.isa());

    // Frames ring a bell that is there only once the camera is.
    let bell = Arc::new(OnceLock::<Arc<Shared>>::new());
    let camera = args.camera.as_ref().map(|address| {
        let (bell, say) = (bell.clone(), camera::say(address, true));
        let notice = move |notice: Notice| {
            if let (Notice::Frame, Some(shared)) = (&notice, bell.get()) {
                shared.ring();
            }
            say(notice);
        };
        camera::open(address, &camera_options, notice)
    });
    let shared = Arc::new(Shared::new(camera.transpose()?));
    let _ = bell.set(shared.clone());
    let started = engine::start(&shared, model, reader, camera_input, posted_input, args.queue.into());
    let (desk, workers) = started.context("cannot start threads")?;
    let limits = Limits { body: args.max_body as usize, connections: args.max_connections.into(), rate: args.max_rate };
    let web = Web::new(shared.clone(), desk, token, &limits, about);
    watch_over(shared.clone()).context("cannot start threads")?;

    // The web, too, comes after the camera.
    let _ = rustix::process::nice(5);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (stop, stopping) = watch::channel(false);
        eprintln!("http://{} · {} · {threads} threads, {isa} kernels", listener.local_addr()?, args.model.display());
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let server = tokio::spawn(http::serve(listener, Arc::new(web), limits.connections, stopping));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let _ = stop.send(true);
        // A second signal does not wait for clients.
        tokio::select! {
            _ = server => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        anyhow::Ok(())
    })?;
    shared.stop();
    // A picture that is being made for a client is of no use to anybody now.
    runtime.shutdown_background();
    let deadline = Instant::now() + LAST_WORK;
    while Instant::now() < deadline && workers.iter().any(|w| !w.is_finished()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    if let Some(camera) = &shared.camera {
        camera.close();
    }
    let m = &shared.metrics;
    eprintln!("stopped: {} frames and {} posted pictures classified", m.camera_inference.count(), m.posted_inference.count());
    Ok(ExitCode::SUCCESS)
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let token = text.trim();
    if token.len() < SHORTEST_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
        let wanted = format!("a token is {SHORTEST_TOKEN} or more printable characters without spaces");
        return Err(Error::Usage(format!("{}: {wanted}: head -c 24 /dev/urandom | base64 > {}", path.display(), path.display())).into());
    }
    Ok(token.into())
}

/// Reads the sensors, and tells systemd's watchdog that the network's thread is alive.
fn watch_over(shared: Arc<Shared>) -> std::io::Result<()> {
    let board = Board::new();
    let watchdog = sd_notify::watchdog_enabled();
    let period = watchdog.map_or(SENSORS, |limit| (limit / 3).min(SENSORS));
    std::thread::Builder::new().name("edge-watch".into()).spawn(move || {
        while !shared.stopped() {
            if watchdog.is_some() && shared.alive() {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
            let now = board.snapshot();
            *engine::lock(&shared.board) = now;
            std::thread::sleep(period);
        }
    })?;
    Ok(())
}

/// Memory of this process that is in RAM.
fn resident_bytes() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
