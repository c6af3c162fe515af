"""Rows of a job with everything that the flat view changes, and the first of them as it shows it."""

from tests.support.job_folders import failed, scored

JUDGED = scored(
    0, 0.9, "manipulated", "face_swap", "text_swap",
    types={"face_swap": 0.9, "face_attribute": 0.1, "text_swap": 0.7, "text_attribute": None},
    box_px={"x0": 1.5, "y0": 2.0, "x1": 30.0, "y1": 40.25},
    words=[{"index": 1, "start": 8, "end": 13, "word": "née", "score": 0.5},
           {"index": 2, "start": 14, "end": 16, "word": "=1", "score": 0.75}],
    word_scores=[0.5, 0.1], text_escapes=[3], metadata='{"desk": "Zürich"}', warnings=["cut", "twice"], width=64,
    text="Zürich, “née” =1\nnext line",
)  # fmt: skip
ROWS = [JUDGED, failed(1, "throttled", retryable=True), scored(2, float("nan"), "authentic", text="=1+1")]
FLAT = {
    "row_id": 0, "custom_id": "c0", "status": "ok", "verdict": "manipulated", "score": 0.9,
    "score_face_swap": 0.9, "score_face_attribute": 0.1, "score_text_swap": 0.7, "score_text_attribute": None,
    "flagged_types": "face_swap; text_swap", "box_x0": 1.5, "box_y0": 2.0, "box_x1": 30.0, "box_y1": 40.25,
    "raw_box_x0": None, "words": "née; =1", "warnings": "cut; twice", "metadata": '{"desk": "Zürich"}', "width": 64,
    "text": "Zürich, “née” =1\nnext line", "error_code": None,
}  # fmt: skip
