//! Numbers of the engine for NumPy and PyTorch without copies: DLPack, both ways
//! (`dlpack.h` of the DLPack project gives the layout).

use std::any::Any;
use std::ffi::{CStr, c_void};
use std::sync::Arc;

use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict, PyTuple};

#[repr(C)]
#[derive(Clone, Copy)]
struct DlDevice {
    kind: i32,
    id: i32,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
struct DlType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    ndim: i32,
    dtype: DlType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`, and from version 1 `DLManagedTensorVersioned`.
#[repr(C)]
struct Managed {
    tensor: DlTensor,
    context: *mut c_void,
    delete: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
struct Versioned {
    version: [u32; 2],
    context: *mut c_void,
    delete: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: DlTensor,
}

const CPU: DlDevice = DlDevice { kind: 1, id: 0 };
const F32: DlType = DlType { code: 2, bits: 32, lanes: 1 };
const READ_ONLY: u64 = 1;
const OLD: &CStr = c"dltensor";
const NEW: &CStr = c"dltensor_versioned";

/// A float32 array of one or two axes, row-major, in memory of the engine or of whoever gave it.
///
/// `numpy.from_dlpack(array)`, `numpy.asarray(array)` and `torch.from_dlpack(array)` see the same memory.
#[pyclass(frozen, module = "lowrank")]
pub struct Array {
    /// Keeps the numbers where they are.
    owner: Arc<dyn Any + Send + Sync>,
    data: *const f32,
    shape: Vec<usize>,
    read_only: bool,
}

// SAFETY: plain numbers that `owner` keeps alive and that Rust only reads.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

impl Array {
    /// `data`, which lies in `owner` and stays there. `read_only` where others see the same numbers.
    pub fn new(owner: Arc<dyn Any + Send + Sync>, data: &[f32], shape: Vec<usize>, read_only: bool) -> Self {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "the shape fits the numbers");
        Self { data: data.as_ptr(), owner, shape, read_only }
    }

    /// Of a vector that nobody else needs.
    pub fn owned(data: Vec<f32>, shape: Vec<usize>) -> Self {
        let owner = Arc::new(data);
        let numbers: &[f32] = &owner;
        let (data, len) = (numbers.as_ptr(), numbers.len());
        assert_eq!(len, shape.iter().product::<usize>(), "the shape fits the numbers");
        Self { data, owner, shape, read_only: false }
    }

    /// The numbers.
    pub fn numbers(&self) -> &[f32] {
        let len = self.shape.iter().product();
        // SAFETY: checked when made; `owner` keeps them.
        unsafe { std::slice::from_raw_parts(self.data, len) }
    }

    /// Its axes.
    pub fn axes(&self) -> &[usize] {
        &self.shape
    }
}

/// What a consumer's tensor holds on to.
struct Export {
    _owner: Arc<dyn Any + Send + Sync>,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Export {
    fn of(array: &Array) -> Box<Self> {
        let shape: Vec<i64> = array.shape.iter().map(|n| *n as i64).collect();
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        Box::new(Self { _owner: array.owner.clone(), shape, strides })
    }

    fn tensor(&mut self, data: *const f32) -> DlTensor {
        DlTensor {
            data: data.cast_mut().cast(),
            device: CPU,
            ndim: self.shape.len() as i32,
            dtype: F32,
            shape: self.shape.as_mut_ptr(),
            strides: self.strides.as_mut_ptr(),
            byte_offset: 0,
        }
    }
}

unsafe extern "C" fn delete_old(managed: *mut Managed) {
    // SAFETY: `managed` and its context come from `Box::into_raw` in `__dlpack__`, and are deleted once.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Export>()));
    }
}

unsafe extern "C" fn delete_new(managed: *mut Versioned) {
    // SAFETY: as above.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Export>()));
    }
}

/// Of a capsule that nobody consumed (a consumer changes its name).
unsafe extern "C" fn drop_capsule(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls this with a capsule made below; a valid name says which struct is inside.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, OLD.as_ptr()) == 1 {
            delete_old(ffi::PyCapsule_GetPointer(capsule, OLD.as_ptr()).cast());
        } else if ffi::PyCapsule_IsValid(capsule, NEW.as_ptr()) == 1 {
            delete_new(ffi::PyCapsule_GetPointer(capsule, NEW.as_ptr()).cast());
        }
    }
}

#[pymethods]
impl Array {
    /// The axes.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    /// Where the first number lies.
    fn data_ptr(&self) -> usize {
        self.data as usize
    }

    fn __len__(&self) -> usize {
        self.shape[0]
    }

    fn __repr__(&self) -> String {
        format!("lowrank.Array(shape={:?}, dtype=float32)", self.shape)
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        (CPU.kind, CPU.id)
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if stream.is_some() || dl_device.is_some_and(|d| d != (CPU.kind, CPU.id)) {
            return Err(PyBufferError::new_err("the numbers are in the processor's memory"));
        }
        if copy == Some(true) {
            let copy = Self::owned(self.numbers().to_vec(), self.shape.clone());
            return copy.__dlpack__(py, None, max_version, None, None);
        }
        let mut export = Export::of(self);
        let tensor = export.tensor(self.data);
        let context = Box::into_raw(export).cast();
        let (pointer, name) = if max_version.is_some_and(|(major, _)| major >= 1) {
            let flags = if self.read_only { READ_ONLY } else { 0 };
            let versioned = Versioned { version: [1, 0], context, delete: Some(delete_new), flags, tensor };
            (Box::into_raw(Box::new(versioned)).cast(), NEW)
        } else {
            (Box::into_raw(Box::new(Managed { tensor, context, delete: Some(delete_old) })).cast(), OLD)
        };
        // SAFETY: a live pointer and a static name; Python owns the capsule that comes back.
        unsafe {
            let capsule = ffi::PyCapsule_New(pointer, name.as_ptr(), Some(drop_capsule));
            Bound::from_owned_ptr_or_err(py, capsule)
        }
    }

    /// The same memory as a NumPy array.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("numpy")?.call_method1("from_dlpack", (slf,))
    }

    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let array = Self::numpy(slf)?;
        let array = match dtype {
            Some(dtype) => {
                let options = PyDict::new(slf.py());
                options.set_item("copy", false)?;
                array.call_method("astype", (dtype,), Some(&options))?
            }
            None => array,
        };
        if copy == Some(true) { array.call_method0("copy") } else { Ok(array) }
    }
}

/// A consumed tensor of another library; dropping it gives it back.
enum Import {
    Old(*mut Managed),
    New(*mut Versioned),
}

// SAFETY: the producer's numbers are read only, and its deleter may be called from any thread.
unsafe impl Send for Import {}
// SAFETY: as above.
unsafe impl Sync for Import {}

impl Import {
    fn tensor(&self) -> &DlTensor {
        // SAFETY: the producer keeps the struct until its deleter is called.
        unsafe {
            match self {
                Self::Old(managed) => &(**managed).tensor,
                Self::New(managed) => &(**managed).tensor,
            }
        }
    }

    fn flags(&self) -> u64 {
        match self {
            Self::Old(_) => 0,
            // SAFETY: as above.
            Self::New(managed) => unsafe { (**managed).flags },
        }
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        // SAFETY: the consumer of a capsule calls the deleter, once, where there is one.
        unsafe {
            match *self {
                Self::Old(managed) => {
                    if let Some(delete) = (*managed).delete {
                        delete(managed);
                    }
                }
                Self::New(managed) => {
                    if let Some(delete) = (*managed).delete {
                        delete(managed);
                    }
                }
            }
        }
    }
}

/// An :class:`Array` over the memory of any object with ``__dlpack__`` (NumPy, PyTorch, JAX, ...): float32, on
/// the processor, row-major. Nothing is copied.
#[pyfunction]
pub fn from_dlpack(source: &Bound<'_, PyAny>) -> PyResult<Array> {
    let py = source.py();
    if let Ok(array) = source.cast::<Array>() {
        let Array { owner, data, shape, read_only } = array.get();
        return Ok(Array { owner: owner.clone(), data: *data, shape: shape.clone(), read_only: *read_only });
    }
    if !source.hasattr("__dlpack__")? {
        let kind = source.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "a {kind} has no __dlpack__: give a NumPy array or a tensor"
        )));
    }
    let options = PyDict::new(py);
    options.set_item("max_version", (1, 0))?;
    let capsule = match source.call_method("__dlpack__", (), Some(&options)) {
        // Older producers do not know the word.
        Err(e) if e.is_instance_of::<PyTypeError>(py) => source.call_method0("__dlpack__")?,
        other => other?,
    };
    let capsule = capsule.cast_into::<PyCapsule>()?;
    let raw = capsule.as_ptr();
    // SAFETY: the name says which struct the pointer leads to; changing it takes the struct over.
    let import = unsafe {
        if ffi::PyCapsule_IsValid(raw, NEW.as_ptr()) == 1 {
            let managed: *mut Versioned = ffi::PyCapsule_GetPointer(raw, NEW.as_ptr()).cast();
            ffi::PyCapsule_SetName(raw, c"used_dltensor_versioned".as_ptr());
            Import::New(managed)
        } else if ffi::PyCapsule_IsValid(raw, OLD.as_ptr()) == 1 {
            let managed: *mut Managed = ffi::PyCapsule_GetPointer(raw, OLD.as_ptr()).cast();
            ffi::PyCapsule_SetName(raw, c"used_dltensor".as_ptr());
            Import::Old(managed)
        } else {
            return Err(PyBufferError::new_err("its __dlpack__ gives no DLPack capsule"));
        }
    };
    let (data, shape) = check(import.tensor())?;
    let read_only = import.flags() & READ_ONLY != 0;
    Ok(Array { data, shape, read_only, owner: Arc::new(import) })
}

/// The address and the axes of a tensor that can be read as it lies.
fn check(tensor: &DlTensor) -> PyResult<(*const f32, Vec<usize>)> {
    let wrong = |what: &str| Err(PyValueError::new_err(what.to_owned()));
    if tensor.device.kind != CPU.kind {
        return wrong("the array is on another device: move it to the CPU first");
    }
    if tensor.dtype != F32 {
        return wrong("the array is not float32: convert it first");
    }
    if !(1..=2).contains(&tensor.ndim) {
        return wrong("the array has neither one axis nor two");
    }
    let axes = tensor.ndim as usize;
    // SAFETY: the producer gives `ndim` numbers; strides may be absent (then it is row-major).
    let (shape, strides) = unsafe {
        let strides = (!tensor.strides.is_null()).then(|| std::slice::from_raw_parts(tensor.strides, axes));
        (std::slice::from_raw_parts(tensor.shape, axes), strides)
    };
    let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
    if let Some(strides) = strides {
        let mut expected = 1;
        for axis in (0..axes).rev() {
            if shape[axis] > 1 && strides[axis] != expected {
                return wrong("the array is not row-major: make it contiguous first");
            }
            expected *= shape[axis] as i64;
        }
    }
    if shape.contains(&0) {
        return Ok((std::ptr::NonNull::dangling().as_ptr(), shape));
    }
    let data = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize).cast::<f32>();
    if !data.is_aligned() {
        return wrong("the array's numbers are not aligned: copy it first");
    }
    Ok((data, shape))
}
