"""Opens an exported catalog with nautilus_trader and prints what it sees, as one JSON object.

Arguments: the catalog, the instrument's id; on standard input a JSON list of moments in
nanoseconds. At each moment the whole book after all deltas with ts_event up to it, in the catalog's
order: [[side, price in micro-dollars, size in 1/100 contract], ...].
"""

import itertools
import json
import sys
from decimal import Decimal

from nautilus_trader.model.book import OrderBook
from nautilus_trader.model.enums import BookType
from nautilus_trader.model.identifiers import InstrumentId
from nautilus_trader.persistence.catalog import ParquetDataCatalog


def levels(book: OrderBook) -> list[list[int]]:
    made = []
    for side, found in enumerate((book.bids(), book.asks())):
        for level in found:
            size = sum((order.size.as_decimal() for order in level.orders()), Decimal(0))
            made.append([side, int(level.price.as_decimal() * 10**6), int(size * 100)])
    return sorted(made)


def main() -> None:
    catalog = ParquetDataCatalog(sys.argv[1])
    name = sys.argv[2]
    moments = json.loads(sys.stdin.read())
    (instrument,) = catalog.instruments(instrument_ids=[name])
    deltas = catalog.order_book_deltas(instrument_ids=[name])
    trades = catalog.trade_ticks(instrument_ids=[name])
    book = OrderBook(InstrumentId.from_str(name), BookType.L2_MBP)
    books, at = [], 0
    for moment in moments:
        while at < len(deltas) and deltas[at].ts_event <= moment:
            book.apply_delta(deltas[at])
            at += 1
        books.append(levels(book))
    print(
        json.dumps(
            {
                "deltas": len(deltas),
                "ascending": all(a.ts_init <= b.ts_init for a, b in itertools.pairwise(deltas)),
                "books": books,
                "trades": [
                    [
                        str(t.trade_id),
                        int(t.price.as_decimal() * 10**6),
                        int(t.size.as_decimal() * 100),
                        t.aggressor_side.name,
                        t.ts_event,
                        t.ts_init,
                    ]
                    for t in trades
                ],
                "instrument": [
                    str(instrument.id),
                    instrument.price_precision,
                    instrument.size_precision,
                    str(instrument.price_increment),
                    instrument.outcome,
                    instrument.activation_ns,
                    instrument.expiration_ns,
                ],
            }
        )
    )


main()
