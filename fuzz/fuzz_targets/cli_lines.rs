#![no_main]

throughline_fuzz_runs::runs!("cli_lines");
