//! One message at a time, with nothing else under way: what batching must not cost.

use std::time::{Duration, Instant};

use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline_kafka::rdkafka;

use crate::{Bench, name};

impl Bench {
    /// From the call to the answer, in turns: raw and ours.
    pub(crate) async fn latency(&self, messages: usize) {
        let topic = self.fresh().await;
        let raw: FutureProducer = self.raw_publisher("0");
        let ours = self.publisher(&topic).await;
        let (mut of_raw, mut of_ours) = (Vec::new(), Vec::new());
        for _ in 0..messages {
            let record = FutureRecord::<(), [u8]>::to(name(&topic)).payload(&self.body);
            let started = Instant::now();
            raw.send_result(record).map_err(|(error, _)| error).unwrap().await.unwrap().unwrap();
            of_raw.push(started.elapsed());
            let envelope = self.envelope();
            let started = Instant::now();
            ours.publish(envelope).await.unwrap();
            of_ours.push(started.elapsed());
        }
        ours.close().await.unwrap();
        self.transport.delete(&topic).await.unwrap();
        println!("\n| a single publish, µs | p50 | p99 |\n|---|---|---|");
        for (who, times) in [("raw FutureProducer", &mut of_raw), ("throughline, publish", &mut of_ours)] {
            times.sort();
            let at = |part: usize| times[times.len() * part / 100];
            let micros = |time: Duration| time.as_micros();
            println!("| {who} | {} | {} |", micros(at(50)), micros(at(99)));
        }
    }
}
