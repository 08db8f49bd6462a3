package peers;

import java.util.concurrent.Callable;

/** One replay: the time from the first record processed to the last commit, and what came of it. */
final class Run {
    /** When the first record reached the application, in the process's own nanoseconds; 0 if none has. */
    private static volatile long first;

    private Run() {}

    static void begin() {
        first = 0;
    }

    /** To be called for every record: remembers when the first one came. */
    static void saw() {
        if (first == 0) {
            first = System.nanoTime();
        }
    }

    /**
     * Waits until the position that {@code position} reads has reached {@code end}, or {@code done}
     * holds, and returns when it last moved, in seconds since the first record.
     */
    static double awaitLastCommit(Callable<Long> position, long end, Callable<Boolean> done) throws Exception {
        long last = 0;
        long moved = 0;
        while (true) {
            boolean over = done.call();
            long at = position.call();
            if (at != last) {
                last = at;
                moved = System.nanoTime();
            }
            if (over || last >= end) {
                return (moved - first) / 1e9;
            }
            Thread.sleep(10);
        }
    }

    /** How many records a job makes of the first {@code records}. */
    static long expectedOutputs(String job, long records) {
        if (!job.equals("filter")) {
            return records;
        }
        long kept = 0;
        Records source = new Records();
        for (long index = 0; index < records; index++) {
            source.next();
            if (Records.kept(source.value)) {
                kept++;
            }
        }
        return kept;
    }

    /** That exactly what was expected is committed; counts of all keys add up to the records. */
    static void check(Cluster cluster, String topic, String job, long records) throws Exception {
        boolean counts = job.startsWith("count");
        long expected = expectedOutputs(job, records);
        long[] found = cluster.readCommitted(topic, counts);
        if (found[0] != expected || (counts && found[1] != records)) {
            throw new IllegalStateException(job + ": " + found[0] + " records are committed, " + expected
                    + " were expected; the counts add up to " + found[1]);
        }
    }

    static void report(long records, double seconds) {
        System.out.printf("{\"records\": %d, \"seconds\": %.6f}%n", records, seconds);
    }
}
