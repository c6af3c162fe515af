import pytest

from jobs.scan.settings import ScanSettings


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/news.jsonl.gz", "news"),
        ("s3://bucket/news/*.parquet", "news"),
        ("/data/shards/{00000..00099}.tar", "shards"),
        ("/data/00000.tar", "00000"),
        ("/data/my pairs", "my_pairs"),
        ("/*.jsonl", "scan"),
    ],
)
def test_a_job_without_a_name_takes_that_of_its_input(address: str, name: str) -> None:
    assert ScanSettings(input=address, out="/out").job_folder.uri == f"/out/{name}"
