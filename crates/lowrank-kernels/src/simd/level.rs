//! Which vector instructions the kernels use, found once at run time.

use std::sync::OnceLock;

/// A set of vector instructions, from the plainest to the widest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(dead_code)] // Each target has its own.
pub enum Level {
    /// What every CPU of the target has (on aarch64 that is NEON).
    Portable,
    /// NEON, and FEAT_BF16's `bfmmla` for products in BF16.
    ArmBf16,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same, and the tile unit AMX-BF16 for products.
    Amx,
}

impl Level {
    /// The levels this machine can run.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    levels.push(Self::Avx512);
                    if amx_available() {
                        levels.push(Self::Amx);
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("bf16") {
            levels.push(Self::ArmBf16);
        }
        levels
    }

    /// The name of the level in `LOWRANK_KERNEL`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::ArmBf16 => "bf16",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

/// The level every kernel runs at: the widest this machine has, or the one that the environment
/// variable `LOWRANK_KERNEL` (`portable`, `bf16`, `avx2`, `avx512` or `amx`) names if the machine has it.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let levels = Level::available();
        let asked = std::env::var("LOWRANK_KERNEL").ok();
        let named = levels.iter().find(|level| asked.as_deref() == Some(level.name()));
        *named.or(levels.last()).expect("the portable level is always there")
    })
}

/// Whether this machine has the tile unit AMX-BF16, and its system lets us use it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn amx_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        // Leaf 7: AMX-BF16 and AMX-TILE.
        let bits = std::arch::x86_64::__cpuid_count(7, 0).edx;
        bits >> 22 & 1 == 1 && bits >> 24 & 1 == 1 && amx_allowed()
    })
}

/// Asks the system for the tiles' state: Linux gives it to a process on request.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_allowed() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two integers and changes nothing of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_allowed() -> bool {
    false
}
