//! The functions and handles of an MPI library.
//!
//! Three kinds of libraries differ in what their handles are: Open MPI's are addresses of its symbols, MPICH's (and those
//! of Intel MPI and Cray MPICH, which share its interface) are numbers of 32 bits, and those of the standard interface of MPI 5 are
//! small numbers of the width of an address. All are passed in registers as wide as an address, of which MPICH reads the lower half.

use std::ffi::{OsStr, OsString, c_char, c_int, c_void};
use std::path::PathBuf;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

use crate::Launcher;

/// Room for a request, which MPI writes: 4 or 8 bytes.
pub type Request = u64;

/// Room for a status: 20 to 32 bytes, of which nothing is read.
pub type Status = [u64; 32];

macro_rules! functions {
    ($($field:ident = $name:literal: fn($($arg:ty),*);)*) => {
        /// The functions that are used.
        pub struct Functions {
            $(pub $field: unsafe extern "C" fn($($arg),*) -> c_int,)*
        }

        impl Functions {
            fn of(library: &Library) -> Result<Self, String> {
                // SAFETY: these are functions of every MPI library, with these arguments but for the handles, which the head of this
                // file is about. The library is never closed.
                unsafe {
                    $(let $field: Symbol<unsafe extern "C" fn($($arg),*) -> c_int> =
                        library.get(concat!($name, "\0").as_bytes()).map_err(|e| e.to_string())?;)*
                    Ok(Self { $($field: *$field,)* })
                }
            }
        }
    };
}

functions! {
    init_thread = "MPI_Init_thread": fn(*mut c_int, *mut c_void, c_int, *mut c_int);
    comm_rank = "MPI_Comm_rank": fn(usize, *mut c_int);
    comm_size = "MPI_Comm_size": fn(usize, *mut c_int);
    set_errhandler = "MPI_Comm_set_errhandler": fn(usize, usize);
    error_string = "MPI_Error_string": fn(c_int, *mut c_char, *mut c_int);
    library_version = "MPI_Get_library_version": fn(*mut c_char, *mut c_int);
    isend = "MPI_Isend": fn(*const u8, c_int, usize, c_int, c_int, usize, *mut Request);
    irecv = "MPI_Irecv": fn(*mut u8, c_int, usize, c_int, c_int, usize, *mut Request);
    test = "MPI_Test": fn(*mut Request, *mut c_int, *mut Status);
    abort = "MPI_Abort": fn(usize, c_int);
    finalize = "MPI_Finalize": fn();
}

/// The handles and constants that are used.
pub struct Handles {
    pub world: usize,
    pub byte: usize,
    pub errors_return: usize,
    /// `MPI_THREAD_SERIALIZED`.
    pub serialized: c_int,
}

const MPICH: Handles =
    Handles { world: 0x4400_0000, byte: 0x4c00_010d, errors_return: 0x5400_0001, serialized: 2 };
const STANDARD: Handles = Handles { world: 0x101, byte: 0x247, errors_return: 0x143, serialized: 2048 };

/// An MPI library that is open.
pub struct Mpilib {
    pub call: Functions,
    pub handles: Handles,
    /// What it calls itself.
    pub name: String,
    _library: std::mem::ManuallyDrop<Library>,
}

impl Mpilib {
    /// Opens the library that `LOWRANK_MPI` names, else the launcher's, by its usual names.
    ///
    /// # Errors
    /// Says what was tried.
    pub fn open(launcher: Launcher) -> Result<Self, String> {
        let mut tried = Vec::new();
        for file in candidates(launcher) {
            // SAFETY: a library of the name of an MPI library, or the one that the user names. Its modules look for its symbols in
            // the program, hence `RTLD_GLOBAL`.
            match unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => {
                    return Self::of(library, &file).map_err(|e| format!("{}: {e}", file.display()));
                }
                Err(_) => tried.push(file.to_string_lossy().into_owned()),
            }
        }
        Err(format!("none of {}", tried.join(", ")))
    }

    fn of(library: Library, file: &OsStr) -> Result<Self, String> {
        let call = Functions::of(&library)?;
        let mut text = [0u8; 8192];
        let mut length = 0;
        // SAFETY: the text is as long as the longest that MPI allows.
        unsafe { (call.library_version)(text.as_mut_ptr().cast(), &raw mut length) };
        let text =
            String::from_utf8_lossy(&text[..usize::try_from(length).unwrap_or(0).min(8192)]).into_owned();
        let name = text.split([',', '\n', '\0']).next().unwrap_or_default().trim().replace(['\t'], " ");
        let symbol = |name: &[u8]| {
            // SAFETY: only the address of the symbol is taken.
            unsafe { library.get::<*const c_void>(name) }.ok().map(|symbol| symbol.into_raw() as usize)
        };
        let open_mpi = || {
            Some(Handles {
                world: symbol(b"ompi_mpi_comm_world\0")?,
                byte: symbol(b"ompi_mpi_byte\0")?,
                errors_return: symbol(b"ompi_mpi_errors_return\0")?,
                serialized: 2,
            })
        };
        let standard = file.to_string_lossy().contains("mpi_abi");
        let handles = match open_mpi() {
            Some(handles) if !standard => handles,
            _ if standard => STANDARD,
            _ if ["MPICH", "Intel", "MVAPICH", "CRAY"].iter().any(|known| text.contains(known)) => MPICH,
            _ => return Err(format!("an MPI library of an unknown kind: {name}")),
        };
        Ok(Self { call, handles, name, _library: std::mem::ManuallyDrop::new(library) })
    }
}

/// Files to try, those of the launcher's kind first: beside its program, for an installation that the system's linker does not know of,
/// then those that the linker finds.
fn candidates(launcher: Launcher) -> Vec<OsString> {
    if let Some(file) = std::env::var_os("LOWRANK_MPI") {
        return vec![file];
    }
    let (open_mpi, mpich) =
        (["libmpi.so.40", "libmpi.40.dylib"], ["libmpi.so.12", "libmpi.12.dylib", "libmpi_abi.so.1"]);
    let (open_mpi, mpich) = (open_mpi.as_slice(), mpich.as_slice());
    let names = match launcher.name.starts_with("Open MPI") {
        true => [open_mpi, mpich].concat(),
        false => [mpich, open_mpi].concat(),
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).filter(|dir| dir.join("mpiexec").exists());
    let prefixes: Vec<PathBuf> = ancestors()
        .into_iter()
        .filter(|dir| dir.join("mpiexec").exists())
        .chain(in_path)
        .filter_map(|dir| dir.parent().map(|prefix| prefix.join("lib")))
        .collect();
    let beside = |name: &str| prefixes.iter().map(|lib| lib.join(name)).find(|file| file.exists());
    let mut files = Vec::new();
    for name in names {
        files.extend(beside(name).map(PathBuf::into_os_string));
        files.push(name.into());
    }
    files
}

/// The folders of the programs that started this process: the launcher is one of them.
fn ancestors() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut pid = std::os::unix::process::parent_id();
    for _ in 0..6 {
        let Ok(file) = std::fs::read_link(format!("/proc/{pid}/exe")) else { break };
        folders.extend(file.parent().map(PathBuf::from));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        match parent.and_then(|parent| parent.trim().parse().ok()) {
            Some(parent) if parent > 1 => pid = parent,
            _ => break,
        }
    }
    folders
}
