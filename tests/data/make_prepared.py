"""Writes tests/data/tfds, a prepared TFDS directory of the first few hundred examples of each split of MNIST.

Example: python tests/data/make_prepared.py ~/tensorflow_datasets
"""

import json
import sys
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

SIZES = {"train": 300, "test": 100}


def main(data_dir: str) -> None:
    source, target = Path(data_dir) / "mnist/3.0.1", Path(__file__).parent / "tfds/mnist/3.0.1"
    target.mkdir(parents=True, exist_ok=True)
    info = json.loads((source / "dataset_info.json").read_text())
    for split in info["splits"]:
        size, name = SIZES[split["name"]], f"mnist-{split['name']}.array_record-00000-of-00001"
        records = ArrayRecordReader(str(source / name)).read(0, size)
        writer = ArrayRecordWriter(str(target / name), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        split |= {"shardLengths": [str(size)], "numBytes": str(sum(map(len, records)))}
    (target / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    (target / "features.json").write_text((source / "features.json").read_text())


if __name__ == "__main__":
    main(sys.argv[1])
