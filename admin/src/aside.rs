//! Lines on standard error for whoever looks on, which are no log. Who reads them may have gone, or the disk be full that they
//! go to: that ends nothing, as it would with `eprintln!`.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

/// Says a line, to nobody if it must be.
pub fn say(text: impl Display) {
    // In one piece: lines of several processes on one screen stay whole.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}
