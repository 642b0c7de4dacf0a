//! A worker beside the loop that it stands for, by the clock, in interleaved rounds.

use std::fmt;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::work::{Bench, Shape};

const ROUNDS: usize = 15;
const MESSAGES: usize = 20_000;

/// Messages a second of the loop, and the worker's pace as a multiple of it.
#[derive(Serialize)]
pub(crate) struct Pace {
    by_hand: f64,
    ratio: f64,
    lowest: f64,
    highest: f64,
}

/// Runs both in each round, each first in every other. One that is not counted warms up.
pub(crate) async fn run() -> Result<Pace> {
    let mut bench = Bench::open().await?;
    let (mut by_hand, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let mut shapes = [Shape::Loop, Shape::Worker];
        if round % 2 == 1 {
            shapes.reverse();
        }
        let (mut hand, mut worker) = (0.0, 0.0);
        for shape in shapes {
            let started = Instant::now();
            bench.go_on(shape, MESSAGES).await?;
            let pace = MESSAGES as f64 / started.elapsed().as_secs_f64();
            *(if shape == Shape::Loop { &mut hand } else { &mut worker }) = pace;
        }
        if round > 0 {
            by_hand.push(hand);
            ratios.push(worker / hand);
        }
    }
    bench.close().await?;
    by_hand.sort_by(f64::total_cmp);
    ratios.sort_by(f64::total_cmp);
    let at = |sorted: &[f64], index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    Ok(Pace {
        by_hand: at(&by_hand, ROUNDS / 2),
        ratio: at(&ratios, ROUNDS / 2),
        lowest: at(&ratios, 0),
        highest: at(&ratios, ROUNDS - 1),
    })
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by_hand, ratio, lowest, highest } = self;
        write!(f, "loop by hand {by_hand:.0} msg/s; worker ÷ loop {ratio:.2} ({lowest:.2}–{highest:.2})")
    }
}
