"""`codi serve` as a process: it says where it listens, finishes what it has begun, and ends."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
from corpus import encoded, photograph


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_hand_and_refuses_the_rest(number: signal.Signals, home: Path) -> None:
    command = [sys.executable, "-m", "codi_hub.cli", "serve", "--port", "0", "--device", "cpu", "-q"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            data = {"model": "inpaint", "num_inference_steps": "4", "n": "10"}
            files = [(name, ("a.png", encoded(photograph(48, 48), "PNG"))) for name in ("image", "mask")]
            statuses: list[int] = []

            def post() -> None:
                statuses.append(
                    requests.post(f"{url}/v1/images/edits", data=data, files=files, timeout=120).status_code
                )

            threads = [threading.Thread(target=post) for _ in range(3)]
            for thread in threads:
                thread.start()
            while not requests.get(f"{url}/health", timeout=10).json()["waiting"]:
                pass
            process.send_signal(number)
            for thread in threads:
                thread.join(120)
            assert process.wait(60) == 0
            assert set(statuses) <= {200, 503}
            assert 503 in statuses
            assert process.stdout.read() == ""
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
