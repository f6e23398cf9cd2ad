"""Numbers as a file keeps them: what is broken measures NaN, and is to be read as that and not as nothing."""

from pydantic import BaseModel, ConfigDict


class Numbers(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
