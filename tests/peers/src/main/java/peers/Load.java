package peers;

import java.util.Properties;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Writes the input topic: {@code Load SERVERS RECORDS}. */
final class Load {
    private Load() {}

    public static void main(String[] args) throws Exception {
        long records = Long.parseLong(args[1]);
        Properties config = new Properties();
        config.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        config.put(ProducerConfig.COMPRESSION_TYPE_CONFIG, "lz4");
        config.put(ProducerConfig.BATCH_SIZE_CONFIG, 512 << 10);
        config.put(ProducerConfig.LINGER_MS_CONFIG, 100);
        config.put(ProducerConfig.BUFFER_MEMORY_CONFIG, 64 << 20);
        long started = System.nanoTime();
        AtomicReference<Exception> failure = new AtomicReference<>();
        try (Cluster cluster = new Cluster(args[0]);
                var producer = new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer())) {
            cluster.createTopic(Records.TOPIC);
            Records source = new Records();
            for (long index = 0; index < records && failure.get() == null; index++) {
                source.next();
                producer.send(new ProducerRecord<>(Records.TOPIC, 0, source.key, source.value),
                        (at, error) -> failure.compareAndSet(null, error));
            }
            producer.flush();
            if (failure.get() != null) {
                throw failure.get();
            }
            long end = cluster.committedEnd(Records.TOPIC);
            if (end != records) {
                throw new IllegalStateException("the topic ends at " + end + ", not at " + records);
            }
        }
        double seconds = (System.nanoTime() - started) / 1e9;
        System.out.printf("{\"records\": %d, \"seconds\": %.6f, \"data\": %d}%n", records, seconds, Records.checksum());
    }
}
