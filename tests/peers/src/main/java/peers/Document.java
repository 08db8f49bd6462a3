package peers;

import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.annotation.JsonPropertyOrder;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import java.io.IOException;
import java.io.UncheckedIOException;

/** The JSON map: a value, parsed into a typed object, makes another, its user, level and amount with tax. */
final class Document {
    /** What is read; the note is skipped. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    public static final class Sale {
        public String level;
        public long user;
        public long amount;
    }

    /** What is written. */
    @JsonPropertyOrder({"user", "level", "amount_with_tax"})
    public static final class Taxed {
        public long user;
        public String level;
        @JsonProperty("amount_with_tax")
        public long amountWithTax;
    }

    private static final ObjectMapper MAPPER = new ObjectMapper();
    private static final ObjectReader READER = MAPPER.readerFor(Sale.class);
    private static final ObjectWriter WRITER = MAPPER.writerFor(Taxed.class);

    private Document() {}

    static byte[] map(byte[] value) {
        try {
            Sale sale = READER.readValue(value);
            Taxed taxed = new Taxed();
            taxed.user = sale.user;
            taxed.level = sale.level;
            taxed.amountWithTax = sale.amount + sale.amount / 5;
            return WRITER.writeValueAsBytes(taxed);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
