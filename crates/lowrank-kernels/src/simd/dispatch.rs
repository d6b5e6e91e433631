//! Code written once, compiled for every level and chosen at run time.

/// Runs `$body` with `$V` standing for the [`super::Vector`] of `$level`, which must be one of
/// [`super::Level::available`]. Where that is the portable level, it is `Portable<4>`, or what is named.
macro_rules! at_level {
    ($level:expr, $V:ident => $body:expr) => {
        $crate::simd::at_level!($level, $V, $crate::simd::Portable<4> => $body)
    };
    ($level:expr, $V:ident, $portable:ty => $body:expr) => {{
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
                type $V = $portable;
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

            $crate::simd::at_level!($crate::simd::level(), Chosen, $crate::simd::Portable<8> => {
                // SAFETY: `level` names only what this CPU has.
                unsafe {
                    <Chosen as $crate::simd::Vector>::enter(
                        #[inline(always)]
                        move || generic::<Chosen>($($arg),*),
                    )
                }
            })
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
