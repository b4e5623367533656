//! Files that hold code, mapped once and kept: every process that maps one shares what is known of it.
//!
//! The key is the file itself (device, inode, size, times), not its build-id: a target chooses its build-id, and a forged one
//! would put false names into the stacks of its neighbours.

use super::bus_errors;
use super::go::{GoFrame, GoTableError, PcLineTable};
use super::image::{Image, ImageError};
use super::names::{Named, Names, PerfMap};
use super::tasks::{KeptNames, Tables};
use super::unwind::RawFrame;
use super::unwind::cfi::Cfi;
use super::unwind::stack_memory;
use crate::census::Pid;
use crate::proc::Frame;
use crate::proc::maps::Mapping;
use nix::fcntl::OFlag;
use std::collections::{HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Images kept, whoever uses them.
const MAX_IMAGES: usize = 1024;
/// Perf maps kept.
const MAX_PERF_MAPS: usize = 8;
/// Memory for names of images that nobody uses at the moment, bytes.
const MAX_BYTES: usize = 64 << 20;
/// Addresses of one image whose names are kept.
const MAX_RESOLVED: usize = 64 << 10;
/// The vdso has two pages; a mapping that claims more is not read.
const MAX_VDSO: u64 = 64 << 10;

/// Names by svma and whether it is a return address.
type Resolved = HashMap<(u64, bool), Arc<[Named]>>;

/// What is known of one file that holds code.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) image: Arc<Image>,
    /// Path as the target that came first saw it.
    pub(super) path: String,
    /// Where that target sees its files.
    root: PathBuf,
    pub(super) cfi: Cfi,
    go: OnceLock<Result<Option<PcLineTable>, GoTableError>>,
    tasks: OnceLock<Tables>,
    task_names: Mutex<KeptNames>,
    names: OnceLock<Names>,
    resolved: Mutex<Resolved>,
}

impl Loaded {
    /// What can be learnt of an image; nothing is read yet.
    pub(super) fn new(image: Image, path: &str, root: PathBuf) -> Arc<Self> {
        let image = Arc::new(image);
        Arc::new(Self {
            cfi: Cfi::new(&image),
            image,
            path: path.to_owned(),
            root,
            go: OnceLock::new(),
            tasks: OnceLock::new(),
            task_names: Mutex::default(),
            names: OnceLock::new(),
            resolved: Mutex::default(),
        })
    }

    /// The tables of a Go program.
    pub(super) fn go(&self) -> Option<&PcLineTable> {
        self.go_or_why().ok().flatten()
    }

    /// The same; an error says why they cannot be used.
    pub(super) fn go_or_why(&self) -> Result<Option<&PcLineTable>, &GoTableError> {
        let find = || PcLineTable::find(&self.image).inspect_err(|error| log::debug!("{}: {error}", self.path));
        self.go.get_or_init(find).as_ref().map(Option::as_ref)
    }

    /// The types of tokio's tasks in it, found at first need.
    pub(super) fn tasks(&self) -> &Tables {
        self.tasks.get_or_init(|| Tables::find(&self.image))
    }

    /// What those that were looked up are called.
    pub(super) fn task_names(&self) -> MutexGuard<'_, KeptNames> {
        self.task_names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its symbols and debug information, found at first need.
    pub(super) fn names(&self) -> &Names {
        self.names.get_or_init(|| {
            let names = Names::load(Arc::clone(&self.image), &self.root, &self.path);
            for note in names.notes() {
                log::debug!("{}: {note}", self.path);
            }
            names
        })
    }

    /// The functions at an svma, innermost first; empty where nothing names them.
    pub(super) fn resolve(&self, svma: u64, is_return_address: bool) -> Arc<[Named]> {
        let key = (svma, is_return_address);
        let lock = || self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&key) {
            return Arc::clone(known);
        }
        let from_go = self.go().map(|go| go.frames(svma.wrapping_sub(u64::from(is_return_address))));
        let found: Arc<[Named]> = match from_go {
            Some(frames) if !frames.is_empty() => frames.into_iter().map(named).collect(),
            _ => self.names().lookup(svma, is_return_address).frames.into(),
        };
        let mut resolved = lock();
        if resolved.len() >= MAX_RESOLVED {
            resolved.clear();
        }
        resolved.insert(key, Arc::clone(&found));
        found
    }

    /// Adds the functions of a frame of this file, innermost first; one without a name where nothing names it, or none is to be
    /// `resolved` any more. `lookup`: the svma that the frame is looked up by.
    pub(super) fn name(&self, lookup: u64, raw: &RawFrame, resolved: bool, frames: &mut Vec<Frame>) {
        let svma = lookup.wrapping_add(u64::from(raw.is_return));
        let (module, build_id) = (Some(self.path.clone()), self.image.build_id().map(str::to_owned));
        let bare = Frame { module, build_id, offset: svma, ..raw.bare() };
        let named = if resolved { self.resolve(svma, raw.is_return) } else { Arc::default() };
        if named.is_empty() {
            frames.push(bare);
            return;
        }
        frames.extend(named.iter().map(|Named { function, file, line, inlined }| Frame {
            function: function.clone(),
            file: file.clone(),
            line: *line,
            inlined: *inlined,
            ..bare.clone()
        }));
    }

    fn approximate_bytes(&self) -> usize {
        let resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner).len();
        let tasks = self.tasks.get().map_or(0, Tables::approximate_bytes);
        resolved * 256 + tasks + self.names.get().map_or(0, Names::approximate_bytes)
    }
}

fn named(frame: GoFrame) -> Named {
    let GoFrame { function, file, line, inlined } = frame;
    Named { function: Some(function), file, line, inlined }
}

/// A file as it is now: another one after any change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileKey {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// The root directory of the target: debug files are looked for there.
    root: (u64, u64),
}

impl FileKey {
    fn new(about: &Metadata, root: &Path) -> Self {
        Self {
            device: about.dev(),
            inode: about.ino(),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
            root: root.metadata().map_or((0, 0), |root| (root.dev(), root.ino())),
        }
    }
}

/// The files known so far.
#[derive(Debug, Default)]
pub(super) struct Library {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// With the number of the call that used it last, and when that was.
    images: HashMap<FileKey, (Arc<Loaded>, u64, Instant)>,
    vdsos: Vec<Arc<Loaded>>,
    perf_maps: VecDeque<(FileKey, Arc<PerfMap>)>,
    calls: u64,
}

impl Library {
    /// The file behind a mapping; an error says why it cannot be used.
    pub(super) fn open(&self, pid: Pid, mapping: &Mapping) -> Result<Arc<Loaded>, String> {
        let file = open(pid, mapping)?;
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let about = file.metadata().map_err(|e| e.to_string())?;
        let key = FileKey::new(&about, &root);
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let image = Image::map(&file).map_err(|error: ImageError| error.to_string())?;
        let loaded = Loaded::new(image, mapping.path(), root);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = state.calls;
        Ok(Arc::clone(&state.images.entry(key).or_insert((loaded, calls, Instant::now())).0))
    }

    fn known(&self, key: &FileKey) -> Option<Arc<Loaded>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.calls += 1;
        let calls = state.calls;
        let (loaded, used, when) = state.images.get_mut(key)?;
        *used = calls;
        *when = Instant::now();
        Some(Arc::clone(loaded))
    }

    /// The code the kernel maps into every process: there is no file, it is read from memory.
    pub(super) fn vdso(&self, pid: Pid, mapping: &Mapping) -> Option<Arc<Loaded>> {
        let size = mapping.end - mapping.start;
        if size > MAX_VDSO {
            return None;
        }
        let bytes = stack_memory::read(pid, mapping.start, size as usize);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.vdsos.iter().find(|known| known.image.bytes() == bytes) {
            return Some(Arc::clone(known));
        }
        let loaded = Loaded::new(Image::from_bytes(bytes).ok()?, "[vdso]", PathBuf::from("/"));
        // A process can put its own bytes there: only a few kinds are remembered.
        if state.vdsos.len() < 8 {
            state.vdsos.push(Arc::clone(&loaded));
        }
        Some(loaded)
    }

    /// The names of code that a process made at run time, if it wrote them down. `via`: a thread of it; `own_pid`: its PID in
    /// its own namespace. What somebody else wrote is not believed.
    pub(super) fn perf_map(&self, via: Pid, own_pid: Pid) -> Option<Arc<PerfMap>> {
        let root = PathBuf::from(format!("/proc/{via}/root"));
        let file = PerfMap::open(&root, own_pid)?;
        let about = file.metadata().ok()?;
        let owner = std::fs::metadata(format!("/proc/{via}")).ok()?.uid();
        if about.uid() != owner && about.uid() != 0 {
            return None;
        }
        let key = FileKey::new(&about, &root);
        let lock = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = lock().perf_maps.iter().find(|(known, _)| *known == key) {
            return Some(Arc::clone(known));
        }
        let map = Arc::new(PerfMap::read(file)?);
        let mut state = lock();
        // A map grows with its program: an older state of it is of no use.
        state.perf_maps.retain(|(known, _)| (known.device, known.inode) != (key.device, key.inode));
        state.perf_maps.push_back((key, Arc::clone(&map)));
        if state.perf_maps.len() > MAX_PERF_MAPS {
            state.perf_maps.pop_front();
        }
        Some(map)
    }

    /// Forgets what has not been used for longest, until the rest fits. May wait for other readers.
    pub(super) fn trim(&self) {
        let lock = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: Vec<(u64, FileKey, Arc<Loaded>)> =
            lock().images.iter().map(|(key, (loaded, used, _))| (*used, *key, Arc::clone(loaded))).collect();
        // Without the lock: another reader may be at work in one of them for a while.
        let mut sizes: Vec<(u64, usize, FileKey)> =
            kept.into_iter().map(|(used, key, loaded)| (used, loaded.approximate_bytes(), key)).collect();
        sizes.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let mut bytes = 0;
        for (number, (_, size, key)) in sizes.into_iter().enumerate() {
            bytes += size;
            if number >= MAX_IMAGES || bytes > MAX_BYTES {
                lock().images.remove(&key);
            }
        }
    }

    /// Forgets what nobody has asked about for so long, and answers whether there was anything.
    pub(super) fn rest(&self, idle: Duration) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.images.len();
        state.images.retain(|_, (.., when)| when.elapsed() < idle);
        let forgotten = state.images.len() < before;
        if state.images.is_empty() {
            state.perf_maps.clear();
        }
        forgotten
    }

    /// Pages of mapped files that vanished while we looked.
    pub(super) fn pages_lost() -> u64 {
        bus_errors::replaced()
    }
}

/// Opens the mapped file itself, also one that was deleted or lies in another mount namespace.
fn open(pid: Pid, mapping: &Mapping) -> Result<File, String> {
    // The names in map_files are not padded, those in maps are.
    let direct = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end));
    let refused = match open_regular(&direct) {
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    // Without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE: by name, if that is still the same file.
    let by_name = PathBuf::from(format!("/proc/{pid}/root{}", mapping.path()));
    let program = PathBuf::from(format!("/proc/{pid}/exe"));
    [by_name, program]
        .iter()
        .filter_map(|path| open_regular(path).ok())
        .find(|file| file.metadata().is_ok_and(|about| about.ino() == mapping.inode))
        .ok_or_else(|| format!("cannot be opened ({refused})"))
}

/// Opens a regular file for reading: a device must not notice that we look.
fn open_regular(path: &Path) -> std::io::Result<File> {
    let file = File::options().read(true).custom_flags((OFlag::O_PATH | OFlag::O_CLOEXEC).bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
