"""A run as TensorBoard reads it: a folder for the federation and one for every site, so that sites share a chart."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS, STATUS_UNKNOWN
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from consilium.history.flat import Setting
from consilium.tracking.points import Point

FEDERATION, SITES = "federation", "sites"
_SUFFIX = ".consilium"
_STATUS = {"finished": STATUS_SUCCESS, "failed": STATUS_FAILURE, "stopped": STATUS_FAILURE}


class TensorBoardWriter:
    """Writes event files below a folder; those of an earlier writer of the same run are replaced.

    Args:
        folder: what `tensorboard --logdir` is given.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, EventFileWriter] = {}
        self._settings: dict[str, Setting] = {}

    @property
    def place(self) -> str:
        """Where it writes, and how it is looked at."""
        return f"tensorboard --logdir {self._folder}"

    def begin(self, settings: Mapping[str, Setting]) -> int:
        """Begin anew: every event is in the run's own log, so nothing is lost, and no point is there twice."""
        for path in [*self._folder.glob(f"{FEDERATION}/*{_SUFFIX}"), *self._folder.glob(f"{SITES}/*/*{_SUFFIX}")]:
            path.unlink()
        self.describe(settings)
        return 0

    def describe(self, settings: Mapping[str, Setting]) -> None:
        """Write the settings as hyperparameters; the last ones count."""
        self._settings |= settings
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in self._settings.items():
            match value:
                case bool():
                    start.hparams[name].bool_value = value
                case int() | float():
                    start.hparams[name].number_value = value
                case _:
                    start.hparams[name].string_value = value
        self._tell(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))

    def write(self, points: Sequence[Point]) -> None:
        """Write points as scalars, each with the time of its event."""
        for point in points:
            value = Summary.Value(tag=point.name, simple_value=point.value)
            event = Event(wall_time=point.time.timestamp(), step=point.step, summary=Summary(value=[value]))
            self._file(FEDERATION if point.site is None else f"{SITES}/{point.site}").add_event(event)
        for file in self._files.values():
            file.flush()

    def end(self, points: Sequence[Point], *, status: str, files: Sequence[Path]) -> None:
        """Write the last points and how the run ended, and close the files; TensorBoard keeps no other files."""
        self.write(points)
        ended = SessionEndInfo(status=_STATUS.get(status, STATUS_UNKNOWN), end_time_secs=time.time())
        self._tell(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=ended))
        for file in self._files.values():
            file.close()

    def _tell(self, tag: str, content: HParamsPluginData) -> None:
        content.version = metadata.PLUGIN_DATA_VERSION
        about = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
        value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=about))
        file = self._file(FEDERATION)
        file.add_event(Event(wall_time=time.time(), summary=Summary(value=[value])))
        file.flush()

    def _file(self, run: str) -> EventFileWriter:
        """Return the writer of one of TensorBoard's runs; it begins by taking back what a replaced file said."""
        if run not in self._files:
            self._files[run] = EventFileWriter(str(self._folder / run), filename_suffix=_SUFFIX)
            started = SessionLog(status=SessionLog.START)
            self._files[run].add_event(Event(wall_time=time.time(), step=0, session_log=started))
        return self._files[run]
