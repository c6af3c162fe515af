"""The plan of a scan."""

import subprocess
import sys
from pathlib import Path

from asap.weights.model_folder import read_familiarity, resolve_folder
from jobs.scan.plan import plan_scan
from jobs.scan.settings import ScanSettings


def test_a_plan_loads_no_torch_which_would_delay_the_first_pair_by_seconds(corpus: Path) -> None:
    code = (
        "import sys; from jobs.scan.run import plan_scan; from jobs.scan.settings import ScanSettings\n"
        "print(plan_scan(ScanSettings(input=sys.argv[1], out='out')).familiarity_id, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(corpus / "a.jsonl")]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3]).stdout
    familiarity = read_familiarity(resolve_folder("demo"))
    assert familiarity is not None
    assert output.split() == [familiarity.familiarity_id, "False"]


def test_a_model_without_a_familiarity_file_has_no_id_of_it(corpus: Path, model_folder: Path) -> None:
    settings = ScanSettings(input=str(corpus / "a.jsonl"), out=str(corpus / "out"), model=str(model_folder))
    assert plan_scan(settings).familiarity_id is None
