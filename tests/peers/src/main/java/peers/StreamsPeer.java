package peers;

import java.nio.file.Path;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.LongSerializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.ProcessorSupplier;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.RocksDBConfigSetter;
import org.apache.kafka.streams.state.Stores;
import org.rocksdb.BlockBasedTableConfig;
import org.rocksdb.BloomFilter;
import org.rocksdb.Options;

/**
 * Kafka Streams with exactly_once_v2: {@code StreamsPeer SERVERS DIRECTORY JOB RECORDS WARM_UP}. Replays
 * the first WARM_UP records of the topic and checks what came of them, then all RECORDS in another
 * application, which is timed.
 */
final class StreamsPeer {
    private static final String OUTPUT = "output";
    private static final String STORE = "counts";

    private StreamsPeer() {}

    public static void main(String[] args) throws Exception {
        String job = args[2];
        long records = Long.parseLong(args[3]);
        long warmUp = Long.parseLong(args[4]);
        try (Cluster cluster = new Cluster(args[0])) {
            replay(cluster, Path.of(args[1]), job, "warm-up", warmUp);
            double seconds = replay(cluster, Path.of(args[1]), job, "measured", records);
            Run.report(records, seconds);
        }
    }

    /** Replays until {@code records} are committed; returns the seconds from the first record to that commit. */
    private static double replay(Cluster cluster, Path directory, String job, String name, long records)
            throws Exception {
        // Of this process alone: what a group has committed outlives it.
        String group = "streams-" + job + "-" + name + "-" + ProcessHandle.current().pid();
        cluster.deleteTopic(OUTPUT);
        cluster.createTopic(OUTPUT);
        AtomicReference<Throwable> failure = new AtomicReference<>();
        KafkaStreams streams = new KafkaStreams(topology(job), config(cluster.servers, directory, group));
        streams.setUncaughtExceptionHandler(error -> {
            failure.set(error);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Run.begin();
        double seconds;
        try {
            streams.start();
            seconds = Run.awaitLastCommit(() -> cluster.committedInput(group), records, () -> failure.get() != null);
        } finally {
            streams.close();
        }
        if (failure.get() != null) {
            throw new IllegalStateException(job, failure.get());
        }
        Run.check(cluster, OUTPUT, job, cluster.committedInput(group));
        streams.cleanUp();
        cluster.deleteTopic(OUTPUT);
        cluster.deleteTopic(group + "-" + STORE + "-changelog");
        return seconds;
    }

    private static Properties config(String servers, Path directory, String group) {
        Properties config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, group);
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, servers);
        config.put(StreamsConfig.STATE_DIR_CONFIG, directory.toString());
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        config.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        // As often as Flink's checkpoints; the default of 100 ms commits ten times as often.
        config.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000);
        config.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256L << 20);
        config.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 10000);
        config.put(StreamsConfig.ROCKSDB_CONFIG_SETTER_CLASS_CONFIG, Tuned.class);
        config.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        config.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10000);
        config.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 8 << 20);
        config.put(StreamsConfig.consumerPrefix(ConsumerConfig.RECEIVE_BUFFER_CONFIG), 1 << 20);
        config.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        config.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 512 << 10);
        config.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 100);
        config.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 128 << 20);
        config.put(StreamsConfig.producerPrefix(ProducerConfig.SEND_BUFFER_CONFIG), 1 << 20);
        return config;
    }

    private static Topology topology(String job) {
        Topology topology = new Topology();
        Deserializer<byte[]> keys = new ByteArrayDeserializer();
        topology.addSource("source", new FirstSeen(), keys, Records.TOPIC);
        var bytes = new ByteArraySerializer();
        switch (job) {
            case "pass-through" -> topology.addSink("sink", OUTPUT, bytes, bytes, "source");
            case "filter" -> {
                topology.addProcessor("filter", Filter::new, "source");
                topology.addSink("sink", OUTPUT, bytes, bytes, "filter");
            }
            case "json-map" -> {
                topology.addProcessor("map", JsonMap::new, "source");
                topology.addSink("sink", OUTPUT, bytes, bytes, "map");
            }
            case "count-100k", "count-100k-rocksdb" -> {
                var supplier = job.equals("count-100k") ? Stores.inMemoryKeyValueStore(STORE)
                        : Stores.persistentKeyValueStore(STORE);
                var store = Stores.keyValueStoreBuilder(supplier, Serdes.Bytes(), Serdes.Long());
                // The cache saves writes to the changelog and, under it, to RocksDB: one a key and commit.
                topology.addProcessor("count", Count::new, "source");
                topology.addStateStore(store.withCachingEnabled(), "count");
                topology.addSink("sink", OUTPUT, bytes, new LongSerializer(), "count");
            }
            default -> throw new IllegalArgumentException("there is no job " + job);
        }
        return topology;
    }

    /** Takes keys as they are, and notes when the first came. */
    private static final class FirstSeen extends ByteArrayDeserializer {
        @Override
        public byte[] deserialize(String topic, byte[] data) {
            Run.saw();
            return data;
        }
    }

    /** A processor that knows where to send. */
    private abstract static class Step<V> implements Processor<byte[], byte[], byte[], V> {
        ProcessorContext<byte[], V> context;

        @Override
        public void init(ProcessorContext<byte[], V> context) {
            this.context = context;
        }
    }

    private static final class Filter extends Step<byte[]> {
        @Override
        public void process(Record<byte[], byte[]> record) {
            if (Records.kept(record.value())) {
                context.forward(record);
            }
        }
    }

    private static final class JsonMap extends Step<byte[]> {
        @Override
        public void process(Record<byte[], byte[]> record) {
            context.forward(record.withValue(Document.map(record.value())));
        }
    }

    private static final class Count extends Step<Long> {
        private KeyValueStore<Bytes, Long> counts;

        @Override
        public void init(ProcessorContext<byte[], Long> context) {
            super.init(context);
            counts = context.getStateStore(STORE);
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            Bytes key = Bytes.wrap(record.key());
            Long before = counts.get(key);
            Long count = before == null ? 1 : before + 1;
            counts.put(key, count);
            context.forward(record.withValue(count));
        }
    }

    /** RocksDB with room for all counts in memory tables and cache, and filters for its files. */
    public static final class Tuned implements RocksDBConfigSetter {
        private org.rocksdb.Cache cache;
        private BloomFilter filter;

        @Override
        public void setConfig(String store, Options options, Map<String, Object> configs) {
            cache = new org.rocksdb.LRUCache(128 << 20);
            filter = new BloomFilter(10, false);
            BlockBasedTableConfig table = (BlockBasedTableConfig) options.tableFormatConfig();
            table.setBlockCache(cache);
            table.setFilterPolicy(filter);
            options.setTableFormatConfig(table);
            options.setWriteBufferSize(64 << 20);
            options.setMaxWriteBufferNumber(3);
        }

        @Override
        public void close(String store, Options options) {
            cache.close();
            filter.close();
        }
    }
}
