//! Code written once, compiled for every level and chosen at run time.

/// Runs `$body` with `$V` standing for the [`super::Vector`] of `$level`, which must be one of
/// [`super::Level::available`].
macro_rules! at_level {
    ($level:expr, $V:ident => $body:expr) => {{
        match $level {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx512 | $crate::simd::Level::Amx => {
                type $V = $crate::simd::Avx512;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx2 => {
                type $V = $crate::simd::Avx2;
                $body
            }
            _ => {
                type $V = $crate::simd::Portable<4>;
                $body
            }
        }
    }};
}

/// Defines a function whose body, generic over a [`super::Vector`], is compiled once for each level and chosen at run
/// time. Helpers called by the body must be `#[inline(always)]`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$V:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn generic<$V: $crate::simd::Vector>($($arg: $ty),*) $(-> $ret)? $body

            // Functions of their own and not `Vector::enter`: arguments that are known not to overlap are what plain
            // loops are vectorised by.
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    generic::<$crate::simd::Avx512>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    generic::<$crate::simd::Avx2>($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level` names only what this CPU has.
                    $crate::simd::Level::Avx512 | $crate::simd::Level::Amx => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            generic::<$crate::simd::Portable<8>>($($arg),*)
        }
    };
}

/// Runs the body for `at = 0, LANES, 2 LANES ...` below `n`, with `lanes = LANES` or, at the end, what
/// is left. A macro, not a closure, so that the body is surely compiled with the wide instructions.
macro_rules! for_lanes {
    ($V:ident, $n:expr, |$at:ident, $lanes:ident| $body:block) => {{
        let n: usize = $n;
        let mut $at = 0;
        while $at < n {
            let $lanes = (n - $at).min($V::LANES);
            $body
            $at += $V::LANES;
        }
    }};
}

pub(crate) use {at_level, dispatch, for_lanes};
