//! The cases, by what they are about.

mod admin;
mod connection;
mod consume;
mod errors;
mod headers;
mod lease;
mod limits;
mod options;
mod ordering;
mod publish;
mod settle;
mod shutdown;
mod trace;

use crate::suite::Case;

/// Every case, in the order of reports.
pub(crate) const ALL: &[&[Case]] = &[
    publish::CASES,
    consume::CASES,
    settle::CASES,
    lease::CASES,
    ordering::CASES,
    headers::CASES,
    trace::CASES,
    options::CASES,
    limits::CASES,
    errors::CASES,
    connection::CASES,
    shutdown::CASES,
    admin::CASES,
];

/// The cases of a file, which is their area: each is the async function of its name.
macro_rules! cases {
    ($area:literal; $($name:ident: $proves:literal,)+) => {
        &[$($crate::suite::Case {
            name: stringify!($name),
            area: $area,
            proves: $proves,
            run: |cx| Box::pin($name(cx)),
        }),+]
    };
}
use cases;
