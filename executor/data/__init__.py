"""Training data: text to checksummed shards, their order and reading, and plain text files; `feed` gives ranks their batches.

Nothing here needs torch; shards need `zstandard`, tokenizer files `tokenizers` (headway[data]).
"""

from executor.data.corpus import FAKE, STDLIB, Corpus, batch, open_corpus, sample, write_stdlib
from executor.data.feed import Batch, batches, open_data
from executor.data.order import Order
from executor.data.prepare import prepare
from executor.data.reader import Prefetch, Reader
from executor.data.shards import Shards, open_shards
from executor.data.tokens import Tokenizer, decode, load_tokenizer

__all__ = ["FAKE", "STDLIB", "Batch", "Corpus", "Order", "Prefetch", "Reader", "Shards", "Tokenizer", "batch", "batches",
           "decode", "load_tokenizer", "open_corpus", "open_data", "open_shards", "prepare", "sample", "write_stdlib"]
