import pytest

from jobs.scan.settings import ScanSettings


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/news.jsonl.gz", "news"),
        ("s3://bucket/news/*.parquet", "news-parquet"),
        ("/data/00000.tar", "00000"),
        ("/data/my pairs", "my_pairs"),
        ("/*.jsonl", "scan-jsonl"),
    ],
)
def test_a_job_without_a_name_takes_that_of_its_input(address: str, name: str) -> None:
    assert ScanSettings(input=address, out="/out").job_folder.uri == f"/out/{name}"


def test_different_patterns_give_different_jobs() -> None:
    patterns = ("data[1]", "data[2]", "data?1", "{00000..00099}.tar", "*.tar", "**/*.tar", "a/*.tar", "*_tar")
    names = [ScanSettings(input=f"/data/news/{pattern}", out="/out").job_folder.name for pattern in patterns]
    assert len(set(names)) == len(patterns)
    assert names[3].startswith("news-00000-00099-tar-")
    assert all(ScanSettings(input="/data", out="/out", job=name).job == name for name in names)
