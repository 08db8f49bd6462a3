package peers;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ListOffsetsOptions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.IsolationLevel;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** What is asked of the broker from outside the measured work: topics of one partition, and what is committed. */
final class Cluster implements AutoCloseable {
    final String servers;
    private final Admin admin;

    Cluster(String servers) {
        this.servers = servers;
        this.admin = Admin.create(Map.of("bootstrap.servers", servers));
    }

    void createTopic(String topic) throws Exception {
        NewTopic fresh = new NewTopic(topic, 1, (short) 1).configs(Map.of("retention.ms", "-1"));
        admin.createTopics(List.of(fresh)).all().get();
    }

    void deleteTopic(String topic) throws Exception {
        try {
            admin.deleteTopics(List.of(topic)).all().get();
        } catch (ExecutionException error) {
            if (!(error.getCause() instanceof UnknownTopicOrPartitionException)) {
                throw error;
            }
        }
    }

    /** The offset below which everything is committed. */
    long committedEnd(String topic) throws Exception {
        TopicPartition partition = new TopicPartition(topic, 0);
        ListOffsetsOptions committed = new ListOffsetsOptions(IsolationLevel.READ_COMMITTED);
        return admin.listOffsets(Map.of(partition, OffsetSpec.latest()), committed)
                .partitionResult(partition).get().offset();
    }

    /** The input position that a group has committed. */
    long committedInput(String group) throws Exception {
        OffsetAndMetadata at = admin.listConsumerGroupOffsets(group)
                .partitionsToOffsetAndMetadata().get().get(new TopicPartition(Records.TOPIC, 0));
        return at == null ? 0 : at.offset();
    }

    /**
     * What a reader of committed records sees: how many there are and, if they are counts by key, the sum
     * of each key's highest count.
     */
    long[] readCommitted(String topic, boolean counts) throws Exception {
        Properties config = new Properties();
        config.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, servers);
        config.put(ConsumerConfig.ISOLATION_LEVEL_CONFIG, "read_committed");
        config.put(ConsumerConfig.MAX_POLL_RECORDS_CONFIG, 50_000);
        config.put(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG, 16 << 20);
        TopicPartition partition = new TopicPartition(topic, 0);
        long end = committedEnd(topic);
        long records = 0;
        Map<Integer, Long> highest = new HashMap<>();
        try (var consumer = new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.assign(Set.of(partition));
            consumer.seekToBeginning(Set.of(partition));
            while (consumer.position(partition) < end) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    records++;
                    if (counts) {
                        int key = Integer.parseInt(new String(record.key(), 1, 7, StandardCharsets.ISO_8859_1));
                        highest.merge(key, ByteBuffer.wrap(record.value()).getLong(), Math::max);
                    }
                }
            }
        }
        return new long[] {records, highest.values().stream().mapToLong(Long::longValue).sum()};
    }

    @Override
    public void close() {
        admin.close(Duration.ofSeconds(5));
    }
}
