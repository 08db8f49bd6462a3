package peers;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.zip.CRC32;

/**
 * The records that every system replays, a port of the generator of {@code anabranch bench}
 * (host/src/cli/bench/data.rs): a key of 8 bytes out of 100,000, uniform, and a value of 100 bytes of
 * JSON. Each call of {@link #next} makes one, in {@link #key} and {@link #value}.
 */
final class Records {
    static final String TOPIC = "input";
    private static final long SEED = 1;
    private static final long KEYS = 100_000;
    private static final int VALUE_BYTES = 100;
    private static final byte[] KEPT = bytes("{\"level\":\"warn\"");
    private static final byte[][] WORDS = words("delivery invoice customs express returned partial priority"
            + " standard weekend overseas damaged insured bulk gift pickup locker");

    byte[] key;
    byte[] value;
    private long state = SEED;
    private final byte[] room = new byte[VALUE_BYTES + 64];
    private int length;

    /** SplitMix64. */
    private long random() {
        state += 0x9E3779B97F4A7C15L;
        long z = state;
        z = (z ^ (z >>> 30)) * 0xBF58476D1CE4E5B9L;
        z = (z ^ (z >>> 27)) * 0x94D049BB133111EBL;
        return z ^ (z >>> 31);
    }

    void next() {
        key = new byte[8];
        key[0] = 'k';
        long number = Long.remainderUnsigned(random(), KEYS);
        for (int at = 7; at > 0; at--) {
            key[at] = (byte) ('0' + number % 10);
            number /= 10;
        }
        long random = random();
        length = 0;
        put(Long.remainderUnsigned(random, 10) < 3 ? "{\"level\":\"warn\",\"user\":" : "{\"level\":\"info\",\"user\":");
        put(Long.toString((random >>> 8) % 100_000));
        put(",\"amount\":");
        put(Long.toString((random >>> 32) % 10_000));
        put(",\"note\":\"");
        while (length < VALUE_BYTES - 2) {
            long word = random();
            for (int n = 0; n < 4 && length < VALUE_BYTES; n++) {
                put(WORDS[(int) (word & 15)]);
                word >>>= 4;
                int hex = (int) Long.remainderUnsigned(word, 256);
                room[length++] = ' ';
                room[length++] = (byte) Character.forDigit(hex >> 4, 16);
                room[length++] = (byte) Character.forDigit(hex & 15, 16);
                room[length++] = ' ';
                word >>>= 8;
            }
        }
        room[VALUE_BYTES - 2] = '"';
        room[VALUE_BYTES - 1] = '}';
        value = Arrays.copyOf(room, VALUE_BYTES);
    }

    /** Whether the filter keeps a record; it keeps 30 %. */
    static boolean kept(byte[] value) {
        return Arrays.equals(value, 0, KEPT.length, KEPT, 0, KEPT.length);
    }

    /** A checksum of the first 10,000 records, by which the systems' data is compared. */
    static long checksum() {
        CRC32 crc = new CRC32();
        Records records = new Records();
        for (int index = 0; index < 10_000; index++) {
            records.next();
            crc.update(records.key);
            crc.update(records.value);
        }
        return crc.getValue();
    }

    private void put(String text) {
        for (int at = 0; at < text.length(); at++) {
            room[length++] = (byte) text.charAt(at);
        }
    }

    private void put(byte[] text) {
        System.arraycopy(text, 0, room, length, text.length);
        length += text.length;
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.US_ASCII);
    }

    private static byte[][] words(String text) {
        return Arrays.stream(text.split(" ")).map(Records::bytes).toArray(byte[][]::new);
    }
}
