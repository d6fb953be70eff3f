"""Encode what a bank has pending on Spark: spark-submit examples/cluster/spark.py BANK [WORKERS]

First: memspan add BANK FILES --later. All machines have the same memspan, and the bank's folder under the same path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pandas
from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]

from memspan import MemoryBank
from memspan.bank.encoder import Encoder, encoding_tasks


def encoding(folder: str) -> Callable[[Iterator[pandas.DataFrame]], Iterator[pandas.DataFrame]]:
    """What a worker does: it loads the model once, and gives rows of a manifest. Spark has lost tasks done again."""

    def encode(batches: Iterator[pandas.DataFrame]) -> Iterator[pandas.DataFrame]:
        encoder = Encoder(bank=folder)
        for batch in batches:
            yield pandas.DataFrame(
                {"row": [json.dumps(row) for task in batch["task"] for row in encoder(json.loads(task))]}
            )

    return encode


if __name__ == "__main__":
    folder, workers = sys.argv[1], int((*sys.argv[2:], "2")[0])
    spark = SparkSession.builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "1").getOrCreate()
    bank = MemoryBank.open(folder)
    tasks = [(json.dumps(task.as_json()),) for task in encoding_tasks(bank, Encoder(bank=folder).loaded)]
    frame = spark.createDataFrame(tasks, "task string").repartition(workers)
    rows = frame.mapInPandas(encoding(folder), "row string").collect()
    print(bank.commit(json.loads(row["row"]) for row in rows))
    bank.close()
