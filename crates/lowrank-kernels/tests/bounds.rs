//! Every kernel on odd sizes, each buffer between pages that may not be touched: a read or write past
//! either end of a slice kills the test. Outputs start as NaN, so that a value left out shows too.
#![cfg(unix)]

use std::ops::{Deref, DerefMut};

use lowrank_kernels::*;

/// Values whose slice ends at a forbidden page (`HIGH`) or begins right after one.
struct Guarded<T> {
    map: *mut u8,
    size: usize,
    start: *mut T,
    len: usize,
}

const PAGE: usize = 16384;

impl<T: Copy> Guarded<T> {
    fn new(high: bool, from: &[T]) -> Self {
        let bytes = size_of_val(from);
        let inner = bytes.next_multiple_of(PAGE);
        let size = inner + 2 * PAGE;
        // SAFETY: a fresh private mapping; the inner pages are made accessible before they are used, and the
        // slice lies inside them, aligned since both ends are multiples of its elements' size.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
            let map = libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            let map = map.cast::<u8>();
            let access = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(map.add(PAGE).cast(), inner, access), 0);
            let start = map.add(if high { PAGE + inner - bytes } else { PAGE }).cast::<T>();
            start.copy_from_nonoverlapping(from.as_ptr(), from.len());
            Self { map, size, start, len: from.len() }
        }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.map.cast(), self.size) };
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: written in `new`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and this is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Makes guarded buffers on one side.
#[derive(Clone, Copy)]
struct Side(bool);

impl Side {
    fn numbers(self, len: usize) -> Guarded<f32> {
        let mut numbers = vec![0.0; len];
        normal(&mut numbers, 0.1, 1.0, 3, len as u64);
        Guarded::new(self.0, &numbers)
    }
    fn out(self, len: usize) -> Guarded<f32> {
        Guarded::new(self.0, &vec![f32::NAN; len])
    }
}

fn written(what: &str, out: &[f32]) {
    assert!(out.iter().all(|x| x.is_finite()), "{what}: a value was not written");
}

fn products(side: Side) {
    for (n, o, k) in [(1, 7, 33), (5, 17, 64), (7, 9, 65), (23, 49, 67), (26, 15, 129), (61, 130, 31)] {
        for format in Format::ALL {
            // Whole blocks.
            let k = if format.block_len() == 1 { k } else { format.block_len() * (1 + k % 2) };
            // As an f16, an f32 or anything else a small number.
            let bytes = vec![0x24u8; format.matrix_bytes(o, k).expect("whole blocks")];
            let bytes = Guarded::new(side.0, &bytes);
            let w = WeightRef { format, rows: o, cols: k, order: RowOrder::Plain, bytes: &bytes };
            let (x, dy) = (side.numbers(n * k), side.numbers(n * o));
            let (mut y, mut dx) = (side.out(n * o), side.out(n * k));
            for beta in [0.0, 1.0] {
                linear(&mut y, &x, &w, n, beta);
                linear_backward(&mut dx, &dy, &w, n, beta);
            }
            written(&format!("linear {}", format.name()), &y);
            written(&format!("linear_backward {}", format.name()), &dx);
            let mut rows = side.out(2 * k);
            embedding(&mut rows, &[0, o as u32 - 1], &w, 2);
            written(&format!("embedding {}", format.name()), &rows);
        }
        // An adapter's products: thin, and with transposed operands.
        for r in [1, 3, 8, 13] {
            let (x, a, u) = (side.numbers(n * k), side.numbers(r * k), side.numbers(n * r));
            let (mut xa, mut du, mut da) = (side.out(n * r), side.out(n * k), side.out(r * k));
            let (x, a, u) = (MatRef::row_major(&x, k), MatRef::row_major(&a, k), MatRef::row_major(&u, r));
            gemm(n, r, k, 1.0, x, a.t(), 0.0, MatMut::row_major(&mut xa, r));
            gemm(n, k, r, 1.0, u, a, 0.0, MatMut::row_major(&mut du, k));
            gemm(r, k, n, 1.0, u.t(), x, 0.0, MatMut::row_major(&mut da, k));
            [xa, du, da].iter().for_each(|out| written("gemm", out));
        }
    }
}

fn rows(side: Side) {
    for (n, d) in [(1, 1), (3, 7), (2, 33), (5, 100), (67, 513)] {
        let (x, dy, w, b) = (side.numbers(n * d), side.numbers(n * d), side.numbers(d), side.numbers(d));
        let (mut y, mut dx) = (side.out(n * d), side.out(n * d));
        let (mut mean, mut rstd) = (side.out(n), side.out(n));
        let (mut dw, mut db) = (side.numbers(d), side.numbers(d));
        rms_norm(&mut y, &mut rstd, &x, &w, 1e-5, n, d, 1.0);
        rms_norm_backward(&mut dx, &dy, &x, &w, &rstd, n, d, 1.0, false, Some(&mut dw));
        written("rms_norm", &y);
        written("rms_norm_backward", &dx);
        let (mut y, mut dx) = (side.out(n * d), side.out(n * d));
        dx.copy_from_slice(&dy);
        layer_norm(&mut y, &mut mean, &mut rstd, &x, &w, Some(&b), 1e-2, n, d, 0.0);
        layer_norm_backward(&mut dx, None, &x, &w, &mean, &rstd, n, d, 0.0, Some(&mut dw), Some(&mut db));
        written("layer_norm", &y);
        written("layer_norm_backward", &dx);
        let mut h = side.out(n * d);
        for act in [Activation::Silu, Activation::Relu] {
            let (mut gate, mut up) = (side.numbers(n * d), side.numbers(n * d));
            let (mut dgate, mut dup, mut dx) = (side.numbers(n * d), side.out(n * d), side.numbers(n * d));
            activate(&mut h, &x, act);
            activate_in_place(&mut h, act);
            activate_backward(&mut dx, &x[..], act);
            gated(&mut h, &gate, &up, act);
            gated_in_place(&mut h, &up, act);
            gated_backward(&mut dgate, &mut dup, &gate[..], &up[..], act);
            gated_backward_in_place(&mut gate, &mut up, &dy, act);
            [&h, &dx, &dgate, &dup, &gate, &up].iter().for_each(|out| written("activation", out));
        }
        copy(&mut h, &x);
        add(&mut h, &dy);
        scale(&mut h, 0.5);
        add_bias(&mut h, &b, n, d);
        bias_backward(&mut db, &dy, n, d);
        assert!(sum_squares(&h).is_finite());
        let (mut dropped, mut back) = (side.out(n * d), side.out(n * d));
        dropout(&mut dropped, &x, 0.3, 1, 2);
        dropout_backward(&mut back, &dy, 0.3, 1, 2, false);
        written("dropout", &dropped);
        written("dropout_backward", &back);
        uniform(&mut dropped, -1.0, 1.0, 4, 5);
        let (mut m, mut v) = (side.numbers(n * d), side.numbers(n * d));
        scale(&mut m, 0.0);
        scale(&mut v, 0.0);
        let settings = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        adamw(&mut h, &x, &mut m, &mut v, &settings, 1);
        written("adamw", &h);

        let targets: Vec<u32> = (0..n).map(|i| (i * 5 % d) as u32).collect();
        let (scales, mut losses) = (side.numbers(n), side.out(n));
        for cap in [None, Some(5.0)] {
            let mut logits = side.numbers(n * d);
            cross_entropy(&mut logits, &targets, d, Some(&scales), &mut losses, cap);
            written("cross_entropy", &logits);
            written("losses", &losses);
        }
        let mut logits = side.numbers(n * d);
        softcap(&mut logits, 3.0);
        log_softmax(&mut logits, d);
        argmax(&logits, d, &mut vec![0; n]);
        written("log_softmax", &logits);
    }
}

fn attending(side: Side) {
    for (lengths, heads, kv_heads, head_dim) in
        [(&[1usize][..], 1, 1, 2), (&[5, 3], 3, 1, 6), (&[17, 1, 33], 4, 2, 34), (&[70, 9], 2, 2, 64)]
    {
        for (causal, window) in [(true, None), (true, Some(4)), (false, None)] {
            let n: usize = lengths.iter().sum();
            let mut start = 0;
            let segments: Vec<Segment> = lengths
                .iter()
                .map(|len| {
                    let rows = start..start + len;
                    start += len;
                    // Later ones see the first two rows as their prefix.
                    let prefix = if rows.start >= 2 { 0..2 } else { 0..0 };
                    Segment { q: rows.clone(), prefix, own: rows }
                })
                .collect();
            let scale = 1.0 / (head_dim as f32).sqrt();
            let shape = AttentionShape {
                heads,
                kv_heads,
                head_dim,
                scale,
                causal,
                window,
                softcap: None,
                dropout: None,
            };
            let (wide, narrow) = (n * heads * head_dim, n * kv_heads * head_dim);
            let (mut q, k, v) = (side.numbers(wide), side.numbers(narrow), side.numbers(narrow));
            let (cos, sin) = (side.numbers(n * head_dim / 2), side.numbers(n * head_dim / 2));
            rope(&mut q, &cos, &sin, n, heads, head_dim, head_dim);
            rope_backward(&mut q, &cos, &sin, n, heads, head_dim, head_dim);
            let (mut out, mut lse) = (side.out(wide), side.out(n * heads));
            attention(&mut out, &mut lse, &q, &k, &v, &shape, &segments);
            let dout = side.numbers(wide);
            let (mut dq, mut dk, mut dv) = (side.out(wide), side.out(narrow), side.out(narrow));
            attention_backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, &shape, &segments);
            [out, lse, dq, dk, dv].iter().for_each(|out| written("attention", out));
        }
    }
}

#[test]
fn no_kernel_leaves_its_slices() {
    for side in [Side(true), Side(false)] {
        products(side);
        rows(side);
        attending(side);
    }
}

/// The same on the other paths of this machine, each in a process of its own.
#[test]
fn nor_does_any_other_path() {
    for path in ["portable", "avx2"] {
        let done = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "no_kernel_leaves_its_slices"])
            .env("LOWRANK_KERNEL", path)
            .output()
            .expect("it starts");
        assert!(done.status.success(), "{path}: {}", String::from_utf8_lossy(&done.stdout));
    }
}
