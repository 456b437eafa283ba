"""The doctor: what it reports, and that its exit status follows from it."""

from maskgrpo_plugin import doctor


def test_an_installation_that_works_is_usable(capsys):
    assert doctor.main([]) == 0
    report = capsys.readouterr().out
    assert "FAIL" not in report and "the plugin is usable" in report
    for name in ("trainer maskgrpo_sync", "reward manager maskgrpo_text", "rollout masked_diffusion", "model llada"):
        assert name in report


def test_a_wrong_verl_is_reported_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "VERL_VERSION", "0.0.1")
    assert doctor.main([]) == 1
    assert "the plugin is for 0.0.1" in capsys.readouterr().out
