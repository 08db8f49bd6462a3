package peers;

import java.nio.file.Files;
import java.nio.file.Path;
import kafka.Kafka;
import kafka.tools.StorageTool;
import org.apache.kafka.common.Uuid;

/** A Kafka broker of one node whose files are fresh: {@code Broker DIRECTORY PORT CONTROLLER_PORT}. */
final class Broker {
    private Broker() {}

    public static void main(String[] args) throws Exception {
        Path directory = Path.of(args[0]);
        String properties = String.join("\n",
                "process.roles=broker,controller",
                "node.id=1",
                "controller.quorum.voters=1@127.0.0.1:" + args[2],
                "listeners=PLAINTEXT://127.0.0.1:" + args[1] + ",CONTROLLER://127.0.0.1:" + args[2],
                "advertised.listeners=PLAINTEXT://127.0.0.1:" + args[1],
                "controller.listener.names=CONTROLLER",
                "log.dirs=" + directory.resolve("log"),
                "auto.create.topics.enable=false",
                "offsets.topic.replication.factor=1",
                "offsets.topic.num.partitions=1",
                "transaction.state.log.replication.factor=1",
                "transaction.state.log.min.isr=1",
                "transaction.state.log.num.partitions=1",
                "group.initial.rebalance.delay.ms=0",
                // Topics are lz4 as their producers send them; none is deleted by age.
                "log.retention.ms=-1",
                "socket.send.buffer.bytes=1048576",
                "socket.receive.buffer.bytes=1048576",
                "log.segment.delete.delay.ms=1000",
                "");
        Path file = directory.resolve("server.properties");
        Files.writeString(file, properties);
        String id = Uuid.randomUuid().toString();
        String[] format = {"format", "--cluster-id", id, "--config", file.toString()};
        int code = StorageTool.execute(format, System.err);
        if (code != 0) {
            System.exit(code);
        }
        Kafka.main(new String[] {file.toString()});
    }
}
