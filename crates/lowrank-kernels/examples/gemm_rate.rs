//! GFLOP/s of the products over frozen weights, next to the `gemm` crate on the same f32 shapes.
//!
//! `gemm_rate [--threads N] [--tokens M] [--formats F32,Q4_1] [--backward] [--rounded] [--shapes 576x576,192x576] [--reps N]
//! [--lora R] [--cpu-time] [--quantile 0.5]`
//!
//! The contestants take turns, and each value is the median (or another `--quantile`) of its turns. Shapes are `O x K`. With
//! `--lora R` the dense products of an adapter of rank `R` are timed instead. With `--cpu-time` the rate is per core and second of processor time, which other processes disturb less.

use lowrank_kernels::{
    Format, MatMut, MatRef, RowOrder, WeightRef, gemm, linear, linear_backward, linear_backward_bf16,
    linear_bf16,
};

struct Options {
    threads: usize,
    tokens: Vec<usize>,
    formats: Vec<Format>,
    shapes: Vec<(usize, usize)>,
    reps: usize,
    backward: bool,
    rounded: bool,
    cpu_time: bool,
    lora: Option<usize>,
    quantile: f64,
}

fn options() -> Options {
    let mut options = Options {
        threads: 1,
        tokens: vec![512, 1024],
        formats: vec![Format::F32, Format::Q4_1, Format::Q8_0, Format::Q4_K],
        shapes: vec![(576, 576), (192, 576), (1536, 576), (576, 1536), (2304, 768), (3072, 768), (768, 3072)],
        reps: 9,
        backward: false,
        rounded: false,
        cpu_time: false,
        lora: None,
        quantile: 0.5,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--rounded" {
            options.rounded = true;
            continue;
        }
        if arg == "--backward" {
            options.backward = true;
            continue;
        }
        if arg == "--cpu-time" {
            options.cpu_time = true;
            continue;
        }
        let value = args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        let number =
            |word: &str| word.parse::<usize>().unwrap_or_else(|_| panic!("{word} is not a valid number"));
        match arg.as_str() {
            "--threads" => options.threads = number(&value),
            "--tokens" => options.tokens = value.split(',').map(number).collect(),
            "--lora" => options.lora = Some(number(&value)),
            "--quantile" => options.quantile = value.parse().expect("a value in 0..=1"),
            "--reps" => options.reps = number(&value),
            "--formats" => {
                options.formats = value
                    .split(',')
                    .map(|word| *Format::ALL.iter().find(|f| f.name() == word).expect("a format"))
                    .collect();
            }
            "--shapes" => {
                options.shapes = value
                    .split(',')
                    .map(|word| {
                        let (o, k) = word.split_once('x').expect("OxK");
                        (number(o), number(k))
                    })
                    .collect();
            }
            _ => panic!("unknown option {arg}"),
        }
    }
    options
}

/// Bytes of any format that expand to modest values: random, with the f16 scales made small.
fn weight_bytes(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    let size = format.block_bytes();
    let mut bytes = Vec::with_capacity(rows * format.row_bytes(cols).expect("whole blocks"));
    for _ in 0..rows * cols / format.block_len() {
        let at = bytes.len();
        match format {
            Format::F32 => bytes.extend(((next() % 2000) as f32 / 1000.0 - 1.0).to_le_bytes()),
            Format::F16 | Format::BF16 => bytes.extend([next() as u8, 0x2c]),
            _ => {
                bytes.extend((0..size).map(|_| next() as u8));
                let scale = 0x2400u16.to_le_bytes();
                for i in format.half_scales() {
                    bytes[at + i..at + i + 2].copy_from_slice(&scale);
                }
                // Scales of other types: as a number small.
                if format.half_scales().is_empty() && format != Format::NF4 {
                    bytes[at..].fill(0x24);
                }
            }
        }
    }
    // NF4: what the scales share.
    let rest = (format.matrix_bytes(rows, cols).expect("whole blocks") - bytes.len()) / 4;
    bytes.extend((0..rest).flat_map(|_| 0.05f32.to_le_bytes()));
    bytes
}

/// Seconds on the wall, or of processor time of all threads.
fn seconds(cpu_time: bool, work: impl FnOnce()) -> f64 {
    let now = || {
        let clock = if cpu_time { libc::CLOCK_PROCESS_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the clocks exist on every Unix, and the target is a valid timespec.
        unsafe { libc::clock_gettime(clock, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let start = now();
    work();
    now() - start
}

fn quantile(times: &mut [f64], at: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * at) as usize]
}

/// The product of the `gemm` crate. Matrices are slices with the distances of rows and columns.
fn reference(
    (m, n, k): (usize, usize, usize),
    a: (&[f32], usize, usize),
    b: (&[f32], usize, usize),
    beta: f32,
    c: (&mut [f32], usize, usize),
    par: ::gemm::Parallelism,
) {
    assert!(a.0.len() >= m * k && b.0.len() >= k * n && c.0.len() >= m * n);
    // SAFETY: the matrices are dense and as long as their shapes.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            c.0.as_mut_ptr(),
            c.2 as isize,
            c.1 as isize,
            beta != 0.0,
            a.0.as_ptr(),
            a.2 as isize,
            a.1 as isize,
            b.0.as_ptr(),
            b.2 as isize,
            b.1 as isize,
            beta,
            1.0,
            false,
            false,
            false,
            par,
        );
    }
}

/// The products of `y += (x A^T) B^T` and its gradients.
fn lora(options: &Options, r: usize) {
    println!("GFLOP/s (gemm, ours), rank {r}, {} threads", options.threads);
    println!(
        "{:>6} {:>6} {:>6}   x A^T          h B^T (+=)     dy B           dh A (+=)      dh^T x (+=)    dy^T h (+=)",
        "N", "O", "K"
    );
    for &(o, k) in &options.shapes {
        for &n in &options.tokens {
            let make =
                |len: usize| (0..len).map(|i| ((i * 7919) % 1999) as f32 / 1e3 - 1.0).collect::<Vec<_>>();
            let (x, dy, h, a, b) = (make(n * k), make(n * o), make(n * r), make(r * k), make(o * r));
            // Shape, left, right and beta; what is written is row-major.
            let products = [
                ((n, r, k), (&x[..], k, 1), (&a[..], 1, k), 0.0),
                ((n, o, r), (&h[..], r, 1), (&b[..], 1, r), 1.0),
                ((n, r, o), (&dy[..], o, 1), (&b[..], r, 1), 0.0),
                ((n, k, r), (&h[..], r, 1), (&a[..], k, 1), 1.0),
                ((r, k, n), (&h[..], 1, r), (&x[..], k, 1), 1.0),
                ((o, r, n), (&dy[..], 1, o), (&h[..], r, 1), 1.0),
            ];
            print!("{n:>6} {o:>6} {k:>6}");
            for (shape, left, right, beta) in products {
                let (rows, cols, depth) = shape;
                let mut c = vec![0.0f32; rows * cols];
                let flops = 2.0 * (rows * cols * depth) as f64;
                let par = match options.threads {
                    1 => ::gemm::Parallelism::None,
                    t => ::gemm::Parallelism::Rayon(t),
                };
                let mut times = [Vec::new(), Vec::new()];
                for _ in 0..options.reps {
                    times[0].push(seconds(options.cpu_time, || {
                        (0..10).for_each(|_| reference(shape, left, right, beta, (&mut c, cols, 1), par));
                    }));
                    times[1].push(seconds(options.cpu_time, || {
                        for _ in 0..10 {
                            let a = MatRef { data: left.0, rs: left.1, cs: left.2 };
                            let b = MatRef { data: right.0, rs: right.1, cs: right.2 };
                            gemm(rows, cols, depth, 1.0, a, b, beta, MatMut::row_major(&mut c, cols));
                        }
                    }));
                }
                let [theirs, ours] =
                    times.map(|mut times| 10.0 * flops / quantile(&mut times, options.quantile) / 1e9);
                print!("  {theirs:>6.1} {ours:>6.1}");
            }
            println!();
        }
    }
}

fn main() {
    let options = options();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build().expect("a pool");
    if let Some(rank) = options.lora {
        return pool.install(|| lora(&options, rank));
    }
    let names: String = options.formats.iter().map(|f| format!("{:>8}", f.name())).collect();
    println!("{:>6} {:>6} {:>6} {:>8}{names}   GFLOP/s, {} threads", "N", "O", "K", "gemm", options.threads);
    for &(o, k) in &options.shapes {
        let usable = |f: &&Format| k.is_multiple_of(f.block_len());
        let formats: Vec<Format> = options.formats.iter().filter(usable).copied().collect();
        let weights: Vec<Vec<u8>> = formats.iter().map(|&f| weight_bytes(f, o, k)).collect();
        let dense: Vec<f32> = (0..o * k).map(|i| (i % 2000) as f32 / 1000.0 - 1.0).collect();
        for &n in &options.tokens {
            let x: Vec<f32> = (0..n * o.max(k)).map(|i| ((i * 7919) % 1999) as f32 / 1000.0 - 1.0).collect();
            let mut y = vec![0.0f32; n * o.max(k)];
            let flops = 2.0 * (n * o * k) as f64;
            let (rows, cols, depth) = if options.backward { (n, k, o) } else { (n, o, k) };
            let theirs = |y: &mut [f32]| {
                let (cs, rs) = if options.backward { (1, k) } else { (k, 1) };
                let par = match options.threads {
                    1 => ::gemm::Parallelism::None,
                    t => ::gemm::Parallelism::Rayon(t),
                };
                let (a, b) = ((&x[..], depth, 1), (&dense[..], rs, cs));
                reference((rows, cols, depth), a, b, 0.0, (y, cols, 1), par);
            };
            let ours = |y: &mut [f32], i: usize| {
                let w = WeightRef {
                    format: formats[i],
                    rows: o,
                    cols: k,
                    order: RowOrder::Plain,
                    bytes: &weights[i],
                };
                let (x, y) = (&x[..n * depth], &mut y[..n * cols]);
                let product = match (options.backward, options.rounded) {
                    (false, false) => linear,
                    (true, false) => linear_backward,
                    (false, true) => linear_bf16,
                    (true, true) => linear_backward_bf16,
                };
                product(y, x, &w, n, 0.0);
            };
            let mut times = vec![Vec::new(); formats.len() + 1];
            pool.install(|| {
                theirs(&mut y);
                (0..formats.len()).for_each(|i| ours(&mut y, i));
                // Short products are timed in groups of about 5 ms.
                let group = (0.005 * 8e10 / flops).ceil().max(1.0) as usize;
                for _ in 0..options.reps {
                    let time = seconds(options.cpu_time, || (0..group).for_each(|_| theirs(&mut y)));
                    times[0].push(time / group as f64);
                    for i in 0..formats.len() {
                        let time = seconds(options.cpu_time, || (0..group).for_each(|_| ours(&mut y, i)));
                        times[i + 1].push(time / group as f64);
                    }
                }
            });
            let mut rates = times.iter_mut().map(|times| flops / quantile(times, options.quantile) / 1e9);
            print!("{n:>6} {o:>6} {k:>6} {:>8.1}", rates.next().expect("gemm's own"));
            for format in &options.formats {
                match formats.contains(format) {
                    true => print!("{:>8.1}", rates.next().expect("one for each format")),
                    false => print!("{:>8}", "-"),
                }
            }
            println!();
        }
    }
}
