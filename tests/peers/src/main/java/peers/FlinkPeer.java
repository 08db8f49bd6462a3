package peers;

import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.core.execution.CheckpointingMode;
import org.apache.flink.core.execution.JobClient;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;

/**
 * Flink with exactly-once source, state and sink: {@code FlinkPeer SERVERS DIRECTORY JOB RECORDS WARM_UP}.
 * Replays the first WARM_UP records of the topic in one job, then all RECORDS in another, which is timed.
 */
final class FlinkPeer {
    private static final String OUTPUT = "output";

    private FlinkPeer() {}

    public static void main(String[] args) throws Exception {
        String job = args[2];
        long records = Long.parseLong(args[3]);
        long warmUp = Long.parseLong(args[4]);
        try (Cluster cluster = new Cluster(args[0])) {
            replay(cluster, Path.of(args[1]), job, "warm-up", warmUp);
            double seconds = replay(cluster, Path.of(args[1]), job, "measured", records);
            Run.report(records, seconds);
        }
        // Threads of the embedded cluster may linger.
        System.exit(0);
    }

    /** Replays {@code records}; returns the seconds from the first of them to the last commit of outputs. */
    private static double replay(Cluster cluster, Path directory, String job, String name, long records)
            throws Exception {
        cluster.deleteTopic(OUTPUT);
        cluster.createTopic(OUTPUT);
        StreamExecutionEnvironment environment =
                StreamExecutionEnvironment.createLocalEnvironment(1, config(directory, job));
        pipeline(environment, cluster.servers, job, name, records);
        Run.begin();
        JobClient client = environment.executeAsync(job);
        var result = client.getJobExecutionResult();
        double seconds = Run.awaitLastCommit(() -> cluster.committedEnd(OUTPUT), Long.MAX_VALUE, result::isDone);
        // Throws what the job failed with.
        result.get();
        Run.check(cluster, OUTPUT, job, records);
        cluster.deleteTopic(OUTPUT);
        return seconds;
    }

    private static Configuration config(Path directory, String job) {
        Configuration config = new Configuration();
        config.set(PipelineOptions.OBJECT_REUSE, true);
        config.set(PipelineOptions.GENERIC_TYPES, false);
        config.set(CheckpointingOptions.CHECKPOINTING_INTERVAL, Duration.ofMillis(1000));
        config.set(CheckpointingOptions.CHECKPOINTING_CONSISTENCY_MODE, CheckpointingMode.EXACTLY_ONCE);
        config.set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem");
        config.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, directory.resolve("checkpoints").toUri().toString());
        config.set(RestartStrategyOptions.RESTART_STRATEGY, "none");
        boolean rocks = job.equals("count-100k-rocksdb");
        config.set(StateBackendOptions.STATE_BACKEND, rocks ? "rocksdb" : "hashmap");
        config.set(CheckpointingOptions.INCREMENTAL_CHECKPOINTS, rocks);
        config.set(TaskManagerOptions.MANAGED_MEMORY_SIZE, MemorySize.ofMebiBytes(512));
        config.set(TaskManagerOptions.NETWORK_MEMORY_MIN, MemorySize.ofMebiBytes(64));
        config.set(TaskManagerOptions.NETWORK_MEMORY_MAX, MemorySize.ofMebiBytes(64));
        config.setString("io.tmp.dirs", directory.toString());
        config.setString("state.backend.rocksdb.use-bloom-filter", "true");
        config.setString("state.backend.rocksdb.predefined-options", "FLASH_SSD_OPTIMIZED");
        return config;
    }

    private static void pipeline(
            StreamExecutionEnvironment environment, String servers, String job, String name, long records) {
        switch (job) {
            case "pass-through" -> pairs(environment, servers, records).sinkTo(sink(servers, job + name, new PairWriter()));
            case "filter" -> pairs(environment, servers, records).filter(pair -> Records.kept(pair.f1))
                    .sinkTo(sink(servers, job + name, new PairWriter()));
            case "json-map" -> pairs(environment, servers, records)
                    .map(pair -> {
                        pair.f1 = Document.map(pair.f1);
                        return pair;
                    })
                    .returns(PAIR)
                    .sinkTo(sink(servers, job + name, new PairWriter()));
            // What is counted is the key: nothing else crosses to the counting task.
            case "count-100k", "count-100k-rocksdb" -> source(environment, servers, records, new KeyReader())
                    .keyBy(key -> key)
                    .process(new Count())
                    .sinkTo(sink(servers, job + name, new CountWriter()));
            default -> throw new IllegalArgumentException("there is no job " + job);
        }
    }

    private static final TypeInformation<Tuple2<byte[], byte[]>> PAIR = Types.TUPLE(
            PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO, PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO);

    private static DataStream<Tuple2<byte[], byte[]>> pairs(
            StreamExecutionEnvironment environment, String servers, long records) {
        return source(environment, servers, records, new PairReader());
    }

    private static <T> DataStream<T> source(StreamExecutionEnvironment environment, String servers, long records,
            KafkaRecordDeserializationSchema<T> reader) {
        TopicPartition partition = new TopicPartition(Records.TOPIC, 0);
        KafkaSource<T> source = KafkaSource.<T>builder()
                .setBootstrapServers(servers)
                .setTopics(Records.TOPIC)
                .setGroupId("flink")
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setBounded(OffsetsInitializer.offsets(Map.of(partition, records)))
                .setDeserializer(reader)
                .setProperty("max.poll.records", "10000")
                .setProperty("max.partition.fetch.bytes", Integer.toString(8 << 20))
                .setProperty("receive.buffer.bytes", Integer.toString(1 << 20))
                .build();
        return environment.fromSource(source, WatermarkStrategy.noWatermarks(), "source");
    }

    private static <T> KafkaSink<T> sink(String servers, String name, KafkaRecordSerializationSchema<T> writer) {
        return KafkaSink.<T>builder()
                .setBootstrapServers(servers)
                .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
                .setTransactionalIdPrefix("flink-" + name)
                .setRecordSerializer(writer)
                .setProperty("transaction.timeout.ms", "600000")
                .setProperty("compression.type", "lz4")
                .setProperty("batch.size", Integer.toString(512 << 10))
                .setProperty("linger.ms", "100")
                .setProperty("buffer.memory", Integer.toString(128 << 20))
                .setProperty("send.buffer.bytes", Integer.toString(1 << 20))
                .build();
    }

    /** Keys and values as they are. */
    private static final class PairReader implements KafkaRecordDeserializationSchema<Tuple2<byte[], byte[]>> {
        @Override
        public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<Tuple2<byte[], byte[]>> out) {
            Run.saw();
            out.collect(new Tuple2<>(record.key(), record.value()));
        }

        @Override
        public TypeInformation<Tuple2<byte[], byte[]>> getProducedType() {
            return PAIR;
        }
    }

    /** Keys alone, as text. */
    private static final class KeyReader implements KafkaRecordDeserializationSchema<String> {
        @Override
        public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<String> out) {
            Run.saw();
            out.collect(new String(record.key(), StandardCharsets.ISO_8859_1));
        }

        @Override
        public TypeInformation<String> getProducedType() {
            return Types.STRING;
        }
    }

    private static final class PairWriter implements KafkaRecordSerializationSchema<Tuple2<byte[], byte[]>> {
        @Override
        public ProducerRecord<byte[], byte[]> serialize(
                Tuple2<byte[], byte[]> pair, KafkaSinkContext context, Long timestamp) {
            return new ProducerRecord<>(OUTPUT, 0, timestamp, pair.f0, pair.f1);
        }
    }

    private static final class CountWriter implements KafkaRecordSerializationSchema<Tuple2<String, Long>> {
        @Override
        public ProducerRecord<byte[], byte[]> serialize(
                Tuple2<String, Long> count, KafkaSinkContext context, Long timestamp) {
            byte[] value = new byte[8];
            long bits = count.f1;
            for (int at = 7; at >= 0; at--) {
                value[at] = (byte) bits;
                bits >>>= 8;
            }
            return new ProducerRecord<>(OUTPUT, 0, timestamp, count.f0.getBytes(StandardCharsets.ISO_8859_1), value);
        }
    }

    private static final class Count extends KeyedProcessFunction<String, String, Tuple2<String, Long>> {
        private transient ValueState<Long> count;

        @Override
        public void open(OpenContext context) {
            count = getRuntimeContext().getState(new ValueStateDescriptor<>("count", Types.LONG));
        }

        @Override
        public void processElement(String key, Context context, Collector<Tuple2<String, Long>> out)
                throws Exception {
            Long before = count.value();
            Long now = before == null ? 1 : before + 1;
            count.update(now);
            out.collect(new Tuple2<>(key, now));
        }
    }
}
