//! Operations that take more than one dispatch, or data made for them.

pub(crate) mod attention;
pub(crate) mod product;
pub(crate) mod rows;
