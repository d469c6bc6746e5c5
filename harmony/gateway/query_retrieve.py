"""C-FIND, C-GET and C-MOVE of a `dicom_scp` endpoint, answered by its Backend (PS3.4 Annex C).

Here an Identifier becomes a `Query` or `Retrieve`, and what the backend finds becomes responses: its level, also where
the request does not say one; the information model of its SOP class; what was agreed in extended negotiation; the
character set of the request. Where instances come from and how they match is the backend's affair, counting
sub-operations and responding is `harmony.dimse.retrieve_scp`'s.

Generous in what it understands, as archives are: keys of any level above or beside that of the query, with or without
relational queries having been negotiated (PS3.4 §C.4.1.2.2), and identifiers without Query/Retrieve Level.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager

from harmony.archive.index import ArchiveIndexError, UniqueKeys
from harmony.archive.levels import Level, infer_level
from harmony.archive.matcher import IdentifierError, MatchingOptions
from harmony.dicom.json_model import DataSetError, Model, decode_data_set, encode_data_set, texts_of
from harmony.dicom.transcode import transcode
from harmony.dimse.command import CFindRQ, CGetRQ, CMoveRQ
from harmony.dimse.information_model import PATIENT_ROOT, PATIENT_STUDY_ONLY, STUDY_ROOT, InformationModel
from harmony.dimse.observer import Observer
from harmony.dimse.operation import Operation
from harmony.dimse.peer import Peer
from harmony.dimse.query import find_handler
from harmony.dimse.retrieve_scp import Selection, get_handler, move_handler
from harmony.dimse.scp import Services
from harmony.dimse.sop_class import is_storage_sop_class
from harmony.dimse.status import DimseError, Status
from harmony.gateway.activity import CALLER, Caller
from harmony.gateway.backend import Backend, Query, Retrieve
from harmony.gateway.options import DicomScpOptions
from harmony.gateway.tls import Certificates
from harmony.ul.deadlines import Timeouts
from harmony.ul.items import ExtendedNegotiation

__all__ = ["QueryRetrieve"]

SPECIFIC_CHARACTER_SET, QUERY_RETRIEVE_LEVEL, RETRIEVE_AE_TITLE = 0x00080005, 0x00080052, 0x00080054
PATIENT_ID, STUDY_UID, SERIES_UID, SOP_INSTANCE_UID = 0x00100020, 0x0020000D, 0x0020000E, 0x00080018

MODELS = (STUDY_ROOT, PATIENT_ROOT, PATIENT_STUDY_ONLY)

MAXIMUM_UIDS = 65536
"""In the keys of one retrieve; a list of UI in Explicit VR ends at about a thousand."""


class QueryRetrieve:
    """What one endpoint performs."""

    def __init__(
        self,
        backend: Backend,
        options: DicomScpOptions,
        *,
        observer: Observer | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """observer: of the associations with C-MOVE destinations. certificates: those of the gateway.

        Raises OSError that names a file which cannot be used for TLS with a destination."""
        certificates = certificates or Certificates()
        self._backend = backend
        self._options = options
        self._destinations = {
            title: Peer(
                place.host,
                place.port,
                called_ae_title=place.ae_title,
                calling_ae_title=options.local_aet,
                ssl_context=certificates.client(place.tls) if place.tls is not None else None,
                server_hostname=place.tls_server_name,
                maximum_length=options.max_pdu,
                timeouts=Timeouts(
                    pdu_s=options.pdu_timeout_secs,
                    write_s=options.pdu_timeout_secs,
                    release_s=options.association_timeout_secs,
                ),
                observer=observer,
            )
            for title, place in options.move_destinations().items()
        }

    def register(self, services: Services) -> None:
        """Perform what the enable_* options allow."""
        options = self._options
        if options.enable_find:
            services.operation(CFindRQ, [model.find for model in MODELS], find_handler(self._find))
        if options.enable_get:
            handler = get_handler(self._select, transcode=transcode)
            services.operation(CGetRQ, [model.get for model in MODELS], handler)
            services.store_as_scu()
        if options.enable_move:
            handler = move_handler(
                self._select,
                lambda title, operation: self._destinations.get(title),
                transcode=transcode,
            )
            services.operation(CMoveRQ, [model.move for model in MODELS], handler)

    # What is agreed beforehand

    def extended_negotiation(self, proposed: ExtendedNegotiation) -> bytes | None:
        """The answer to one SOP Class Extended Negotiation item (PS3.4 §C.5.1.1, §C.5.2.1); None: none of ours."""
        offered = proposed.service_class_application_information
        if any(proposed.sop_class_uid == model.find for model in MODELS):
            supported = _FIND_EXTENSIONS if self._backend.matches_as_asked else _RELATIONAL_ONLY
        elif any(proposed.sop_class_uid in (model.get, model.move) for model in MODELS):
            supported = _RELATIONAL_ONLY
        else:
            return None
        return bytes(ours & (theirs == 1) for ours, theirs in zip(supported, offered, strict=False))

    def _matching(self, operation: Operation) -> MatchingOptions:
        options = self._options
        offered = b""
        for item in operation.association.agreed.peer.extended_negotiations:
            if item.sop_class_uid == operation.context.abstract_syntax:
                offered = self.extended_negotiation(item) or b""
        _, combined, fuzzy, timezone, _, empty_value, multiple_value = offered.ljust(7, b"\0")[:7]
        return MatchingOptions(
            empty_matches=options.match_empty_values,
            empty_value_matching=bool(empty_value),
            multiple_value_matching=bool(multiple_value),
            combined_date_time=bool(combined),
            fuzzy_names=bool(fuzzy) or options.fuzzy_names,
            timezone_adjustment=bool(timezone),
        )

    # C-FIND

    async def _find(self, operation: Operation) -> AsyncGenerator[bytes, None]:
        CALLER.set(Caller(operation.association))
        with _answerable(Status.OUT_OF_RESOURCES):
            model = _model_of(operation)
            identifier = _identifier(operation)
            level = _level(identifier, model)
            query = Query(
                level,
                identifier,
                patient_root=model is not STUDY_ROOT,
                matching=self._matching(operation),
            )
            character_set = "\\".join(texts_of(identifier, SPECIFIC_CHARACTER_SET)) or None
            ours: Model = {
                f"{QUERY_RETRIEVE_LEVEL:08X}": {"vr": "CS", "Value": [level.value]},
                f"{RETRIEVE_AE_TITLE:08X}": {"vr": "AE", "Value": [self._options.local_aet]},
            }
            maximum, count = self._options.max_results, 0
            async with aclosing(self._backend.query(query)) as matches:
                async for match in matches:
                    count += 1
                    if maximum and count > maximum:  # never an end that looks like all there is
                        raise DimseError(Status.OUT_OF_RESOURCES, f"more than {maximum} matches")
                    yield encode_data_set(
                        match | ours, operation.context.transfer_syntax, character_set=character_set
                    )

    # C-GET, C-MOVE

    async def _select(self, operation: Operation) -> Selection:
        request = operation.request
        assert isinstance(request, CGetRQ | CMoveRQ)
        destination = request.move_destination if isinstance(request, CMoveRQ) else ""
        CALLER.set(Caller(operation.association, destination))
        with _answerable(Status.OUT_OF_RESOURCES_UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES):
            model = _model_of(operation)
            identifier = _identifier(operation)
            level = _level(identifier, model)
            retrieve = Retrieve(
                level,
                unique_keys(identifier, level),
                patient_root=model is not STUDY_ROOT,
                accepted=_receivable(operation) if isinstance(request, CGetRQ) else None,
                priority=request.priority,
            )
            return await self._backend.retrieve(retrieve)


# Bytes 1 to 7 of the item for FIND: relational queries, combined date-time matching, fuzzy person names, time zone
# adjustment, enhanced multi-frame conversion, empty value matching, multiple value matching.
_FIND_EXTENSIONS = bytes((1, 1, 1, 1, 0, 1, 1))
_RELATIONAL_ONLY = bytes((1,)) + bytes(6)


@contextmanager
def _answerable(index_failure: Status) -> Iterator[None]:
    """What a backend or an identifier raises, as the status to answer with (PS3.4 §C.4.1.1.4, §C.4.2.1.5)."""
    try:
        yield
    except IdentifierError as error:
        raise DimseError(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, str(error), (error.tag,)) from error
    except DataSetError as error:
        raise DimseError(Status.CANNOT_UNDERSTAND, "the Identifier cannot be decoded") from error
    except ArchiveIndexError as error:
        raise DimseError(index_failure, "the archive's index cannot be used") from error


def _model_of(operation: Operation) -> InformationModel:
    """By the SOP class of the presentation context, which the handler was registered for."""
    uid = operation.context.abstract_syntax
    for model in MODELS:
        if uid in (model.find, model.get, model.move):
            return model
    raise DimseError(Status.SOP_CLASS_NOT_SUPPORTED, "SOP class not supported")


def _identifier(operation: Operation) -> Model:
    return decode_data_set(operation.data_set or b"", operation.context.transfer_syntax)


def _level(identifier: Mapping[str, object], model: InformationModel) -> Level:
    """The level of a request; what its keys suggest where it says none. Raises DimseError A900."""
    texts = [text.strip().upper() for text in texts_of(identifier, QUERY_RETRIEVE_LEVEL)]
    if not texts or not texts[0]:
        level = infer_level(identifier)
        return Level(model.levels[0]) if level.value not in model.levels else level
    name = "IMAGE" if texts[0] == "INSTANCE" else texts[0]
    if name not in model.levels:
        raise DimseError(
            Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS,
            f"level not one of {', '.join(model.levels)}",
            (QUERY_RETRIEVE_LEVEL,),
        )
    return Level(name)


def unique_keys(identifier: Mapping[str, object], level: Level) -> UniqueKeys:
    """The unique keys of a level and those above it (PS3.4 §C.4.2.1.4.1); keys below it say nothing.

    Raises DimseError A900 when there is none with a value, since that would be the whole archive.
    """
    tags = [PATIENT_ID, STUDY_UID, SERIES_UID, SOP_INSTANCE_UID][: list(Level).index(level) + 1]
    keys = [_values(identifier, tag) for tag in tags]
    if all(values is None for values in keys):
        raise DimseError(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "no unique key has a value", (tags[-1],))
    return UniqueKeys(*keys)


def _values(identifier: Mapping[str, object], tag: int) -> list[str] | None:
    values = [text for each in texts_of(identifier, tag) if (text := each.strip())]
    if not values or "*" in values:
        return None
    if len(values) > MAXIMUM_UIDS or any("*" in value or "?" in value for value in values):
        raise DimseError(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "a retrieve takes no wild cards", (tag,))
    return values


def _receivable(operation: Operation) -> tuple[tuple[str, str], ...]:
    """What the requestor of a C-GET takes: storage classes that it offered to be SCP of."""
    return tuple(
        (context.abstract_syntax, context.transfer_syntax)
        for context in operation.association.agreed.contexts.values()
        if context.as_scu and is_storage_sop_class(context.abstract_syntax)
    )
