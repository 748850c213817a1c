"""What Dagster knows of the assets' versions, and how it is told of one that was brought back."""

from collections.abc import Sequence
from pathlib import Path

from rsprune_dagster.tracking.version_history import Version

_DATA_VERSION = "dagster/data_version"


def known_versions(home: Path | None, assets: Sequence[str]) -> dict[str, str]:
    """The data version of each asset's latest materialization; empty where there is none.

    Args:
        home: the folder of the Dagster instance.
    """
    if home is None:
        return {}
    import dagster as dg

    with dg.DagsterInstance.from_config(str(home)) as instance:
        events = {asset: instance.get_latest_materialization_event(dg.AssetKey(asset)) for asset in assets}
    made = {asset: event.asset_materialization for asset, event in events.items() if event}
    return {asset: (each.tags or {}).get(_DATA_VERSION, "") for asset, each in made.items() if each}


def report_restored(home: Path, versions: Sequence[Version]) -> None:
    """Record versions as materializations without a run, with the inputs they had, so that none looks stale."""
    import dagster as dg

    with dg.DagsterInstance.from_config(str(home)) as instance:
        for version in versions:
            inputs = {f"dagster/input_data_version/{asset}": hashed for asset, hashed in version.inputs.items()}
            code = version.maker.code_version if version.maker else ""
            event = dg.AssetMaterialization(
                version.asset,
                metadata={"restored": dg.MetadataValue.text(_origin(version))},
                tags={
                    _DATA_VERSION: version.data_version,
                    **inputs,
                    **({"dagster/code_version": code} if code else {}),
                },
            )
            instance.report_runless_asset_event(event)


def _origin(version: Version) -> str:
    if version.maker:
        return f"brought back; made by run {version.maker.run_id}"
    return f"brought back; dvc.lock held it at {version.commits[0].commit}" if version.commits else "brought back"
