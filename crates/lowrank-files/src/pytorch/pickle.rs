//! The part of Python's pickle language that a file of tensors needs, and nothing else.
//!
//! A pickle is a program for a stack machine. This machine has values, tuples, lists and dictionaries; the
//! functions it can call are the few of [`Global`], which build a tensor's description. Anything else is an
//! error that names what was asked for: nothing is ever executed. Every instruction adds at most one object,
//! so memory is bounded by the program's own length, and objects refer to each other by number, so no depth of
//! nesting uses the stack.

use std::collections::HashMap;

use crate::error::shown;

/// A value on the stack: small ones as they are, others by their number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Object(usize),
}

/// What a number stands for.
#[derive(Debug)]
pub(crate) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(Tensor),
}

/// The names a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// A type of storage: safetensors' name of its numbers.
    Storage(&'static str),
}

/// Numbers of one type that lie in the file under `key`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage<'a> {
    pub key: &'a str,
    pub dtype: &'static str,
    pub numbers: u64,
}

/// A view of a storage.
#[derive(Debug)]
pub(crate) struct Tensor {
    /// Number of the storage's object.
    pub storage: usize,
    /// First number.
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self, String> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "FloatStorage") => Self::Storage("F32"),
            ("torch", "HalfStorage") => Self::Storage("F16"),
            ("torch", "BFloat16Storage") => Self::Storage("BF16"),
            ("torch", "DoubleStorage") => Self::Storage("F64"),
            ("torch", "LongStorage") => Self::Storage("I64"),
            ("torch", "IntStorage") => Self::Storage("I32"),
            ("torch", "ShortStorage") => Self::Storage("I16"),
            ("torch", "CharStorage") => Self::Storage("I8"),
            ("torch", "ByteStorage") => Self::Storage("U8"),
            ("torch", "BoolStorage") => Self::Storage("BOOL"),
            _ => {
                return Err(format!(
                    "asks for {}.{}, which no tensor needs; nothing was executed",
                    shown(module),
                    shown(name)
                ));
            }
        })
    }
}

/// Names of instructions that are refused, for the message.
fn instruction(code: u8) -> &'static str {
    match code {
        b'i' => " (INST)",
        b'o' => " (OBJ)",
        b'P' => " (PERSID)",
        b'S' | b'T' | b'U' => " (a string of Python 2)",
        b'B' | b'C' => " (BINBYTES)",
        b'I' | b'L' | b'F' | b'V' => " (a number or text of protocol 0)",
        0x81 => " (NEWOBJ)",
        0x82..=0x84 => " (EXT)",
        0x8f..=0x91 => " (a set)",
        0x92 => " (NEWOBJ_EX)",
        _ => "",
    }
}

/// The machine after it stopped.
pub(crate) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
}

/// Runs the pickle at the start of `bytes`: the machine, its result, and the pickle's length.
///
/// # Errors
/// Says at which byte what is wrong.
pub(crate) fn run(bytes: &[u8]) -> Result<(Machine<'_>, Value<'_>, usize), String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        objects: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let begin = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(result)) => {
                let length = machine.at;
                return Ok((machine, result, length));
            }
            Err(what) => return Err(format!("pickle, byte {begin}: {what}")),
        }
    }
}

impl<'a> Machine<'a> {
    /// The object a value stands for.
    pub fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(number) => self.objects.get(number),
            _ => None,
        }
    }

    /// All storages, also such as no tensor of the result uses.
    pub fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.objects.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let left = &self.bytes[self.at..];
        let taken = left
            .get(..count)
            .ok_or_else(|| format!("takes {count} bytes, but {} follow: truncated or damaged", left.len()))?;
        self.at += count;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many as were asked for"))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let left = &self.bytes[self.at..];
        let end = left.iter().position(|&b| b == b'\n').ok_or("a name without end")?;
        self.at += end + 1;
        std::str::from_utf8(&left[..end]).map_err(|_| "a name that is not UTF-8".to_owned())
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a text that is not UTF-8")?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn push(&mut self, object: Object<'a>) {
        self.objects.push(object);
        self.stack.push(Value::Object(self.objects.len() - 1));
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("takes a value from an empty stack".into());
        }
        Ok(self.stack.pop().expect("not empty"))
    }

    fn since_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or("has no mark to go back to")?;
        Ok(self.stack.split_off(mark))
    }

    fn last(&mut self) -> Result<&mut Object<'a>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack[floor..].last() {
            Some(Value::Object(number)) => Ok(&mut self.objects[*number]),
            _ => Err("changes a value that is not a list or dictionary".into()),
        }
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let mut values = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        values.reverse();
        self.push(Object::Tuple(values));
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Result<(), String> {
        let value = self.pop()?;
        self.stack.push(value);
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), String> {
        let value = self.memo.get(&key).ok_or_else(|| format!("recalls {key}, which was never stored"))?;
        self.stack.push(*value);
        Ok(())
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Result<(), String> {
        let Object::Dict(dict) = self.last()? else { return Err("sets an item of no dictionary".into()) };
        if !items.len().is_multiple_of(2) {
            return Err("sets an item without a value".into());
        }
        dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    fn append(&mut self, items: &[Value<'a>]) -> Result<(), String> {
        let Object::List(list) = self.last()? else { return Err("appends to no list".into()) };
        list.extend(items);
        Ok(())
    }

    fn step(&mut self) -> Result<Option<Value<'a>>, String> {
        let [code] = self.number()?;
        match code {
            0x80 => {
                let [version] = self.number()?;
                if version > 5 {
                    return Err(format!("protocol {version} is newer than any known"));
                }
            }
            0x95 => self.take(8).map(drop)?,
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => {
                let [byte] = self.number()?;
                self.stack.push(Value::Int(byte.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.number()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'J' => {
                let value = i32::from_le_bytes(self.number()?);
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => {
                let [length] = self.number()?;
                let bytes = self.take(length.into())?;
                if bytes.len() > 8 {
                    return Err(format!("an integer of {length} bytes"));
                }
                let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                self.stack.push(Value::Int(i64::from_le_bytes(wide)));
            }
            b'G' => {
                let value = f64::from_be_bytes(self.number()?);
                self.stack.push(Value::Float(value));
            }
            b'X' => {
                let length = u32::from_le_bytes(self.number()?);
                self.text(length as usize)?;
            }
            0x8c => {
                let [length] = self.number()?;
                self.text(length.into())?;
            }
            b']' => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            b')' => self.push(Object::Tuple(Vec::new())),
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b't' => {
                let values = self.since_mark()?;
                self.push(Object::Tuple(values));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set_items(&items)?;
            }
            b'q' => {
                let [key] = self.number()?;
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.number()?);
                self.remember(key.into())?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' => {
                let [key] = self.number()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.number()?);
                self.recall(key.into())?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Object::Global(Global::find(module, name)?));
            }
            0x93 => {
                let (Value::Text(name), Value::Text(module)) = (self.pop()?, self.pop()?) else {
                    return Err("names a global by something that is not a text".into());
                };
                self.push(Object::Global(Global::find(module, name)?));
            }
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'b' => {
                self.pop()?;
                // A dictionary's attributes (`_metadata` of a state_dict) say nothing about tensors.
                let Object::Dict(_) = self.last()? else {
                    return Err("sets the state of an object (BUILD) that is not a dictionary".into());
                };
            }
            b'.' => return self.pop().map(Some),
            other => {
                return Err(format!(
                    "instruction 0x{other:02x}{} has no place in a file of tensors; nothing was executed",
                    instruction(other)
                ));
            }
        }
        Ok(None)
    }

    /// `('storage', type, key, device, numbers)` becomes a storage.
    fn storage(&mut self) -> Result<(), String> {
        let wrong = "a reference that describes no storage";
        let value = self.pop()?;
        let Some(Object::Tuple(parts)) = self.object(value) else { return Err(wrong.into()) };
        let &[
            Value::Text("storage"),
            kind,
            Value::Text(key),
            Value::Text(_),
            Value::Int(numbers),
            ref rest @ ..,
        ] = &parts[..]
        else {
            return Err(wrong.into());
        };
        let Some(Object::Global(Global::Storage(dtype))) = self.object(kind) else {
            return Err(wrong.into());
        };
        if rest.iter().any(|more| *more != Value::None) {
            return Err(
                "a storage that is a view of another; save the file again with a newer PyTorch".into()
            );
        }
        let numbers = u64::try_from(numbers).map_err(|_| format!("a storage of {numbers} numbers"))?;
        let storage = Storage { key, dtype, numbers };
        self.push(Object::Storage(storage));
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Some(Object::Tuple(arguments)) = self.object(arguments) else {
            return Err("calls with something that is not a tuple".into());
        };
        let Some(Object::Global(function)) = self.object(function) else {
            return Err("calls something that is not a function".into());
        };
        let made = match (function, &arguments[..]) {
            (Global::OrderedDict, []) => Object::Dict(Vec::new()),
            (Global::RebuildTensor, &[Value::Object(storage), Value::Int(offset), shape, strides, ..]) => {
                let Some(Object::Storage(_)) = self.objects.get(storage) else {
                    return Err("a tensor without storage".into());
                };
                let offset =
                    u64::try_from(offset).map_err(|_| format!("a tensor that begins at {offset}"))?;
                let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
                if shape.len() != strides.len() || shape.len() > 8 {
                    return Err(format!("a tensor of {} axes with {} strides", shape.len(), strides.len()));
                }
                Object::Tensor(Tensor { storage, offset, shape, strides })
            }
            (Global::RebuildParameter, &[Value::Object(tensor), ..])
                if matches!(self.objects.get(tensor), Some(Object::Tensor(_))) =>
            {
                self.stack.push(Value::Object(tensor));
                return Ok(());
            }
            (function, _) => return Err(format!("calls {function:?} with arguments it does not take")),
        };
        self.push(made);
        Ok(())
    }

    fn sizes(&self, value: Value<'a>) -> Result<Vec<u64>, String> {
        let Some(Object::Tuple(sizes)) = self.object(value) else {
            return Err("sizes that are not a tuple".into());
        };
        if sizes.len() > 8 {
            return Err(format!("a tensor of {} axes", sizes.len()));
        }
        let size = |value: &Value<'_>| match value {
            Value::Int(size) => u64::try_from(*size).map_err(|_| format!("a size of {size}")),
            other => Err(format!("the size {other:?}")),
        };
        sizes.iter().map(size).collect()
    }
}
