package peers;

import java.io.IOException;

/** A process that ends with the one that started it. */
final class Life {
    private Life() {}

    /** Ends this process as soon as its standard input does, however the parent ended. */
    static void tiedToStandardInput() {
        Thread watch = new Thread(() -> {
            try {
                while (System.in.read() >= 0) {}
            } catch (IOException gone) {
                // As good as closed.
            }
            Runtime.getRuntime().halt(3);
        }, "parent");
        watch.setDaemon(true);
        watch.start();
    }
}
