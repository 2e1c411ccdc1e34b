"""The applier's mappings for what only options add: secrets, catalogue, alarms."""

from __future__ import annotations

from typing import Any

from moto_account import ACCOUNT
from taken import Taken


class OptionServices:
    """Part of the applier; the clients are set by it."""

    secretsmanager: Any
    glue: Any
    athena: Any
    sns: Any
    cloudwatch: Any
    budgets: Any
    ec2: Any
    iam: Any
    s3: Any
    rds: Any
    logs: Any

    def _secretsmanager_secret(self, taken: Taken) -> dict[str, str]:
        made = self.secretsmanager.create_secret(
            Name=taken.plain("Name"), Description=taken.plain("Description")
        )
        return {"": made["ARN"]}

    def _glue_database(self, taken: Taken) -> dict[str, str]:
        wanted = taken.plain("DatabaseInput")
        self.glue.create_database(CatalogId=taken.plain("CatalogId"), DatabaseInput=wanted)
        return {"": wanted["Name"]}

    def _glue_table(self, taken: Taken) -> dict[str, str]:
        wanted = taken.plain("TableInput")
        self.glue.create_table(
            CatalogId=taken.plain("CatalogId"),
            DatabaseName=taken.plain("DatabaseName"),
            TableInput=wanted,
        )
        return {"": wanted["Name"]}

    def _athena_workgroup(self, taken: Taken) -> dict[str, str]:
        name = taken.plain("Name")
        self.athena.create_work_group(
            Name=name,
            Description=taken.plain("Description"),
            Configuration=taken.plain("WorkGroupConfiguration"),
        )
        return {"": name}

    def _sns_topic(self, taken: Taken) -> dict[str, str]:
        made = self.sns.create_topic(
            Name=taken.plain("TopicName"), Attributes={"DisplayName": taken.plain("DisplayName")}
        )
        return {"": made["TopicArn"]}

    def _sns_subscription(self, taken: Taken) -> dict[str, str]:
        made = self.sns.subscribe(
            TopicArn=taken.plain("TopicArn"),
            Protocol=taken.plain("Protocol"),
            Endpoint=taken.plain("Endpoint"),
        )
        return {"": made["SubscriptionArn"]}

    def _cloudwatch_alarm(self, taken: Taken) -> dict[str, str]:
        name = taken.plain("AlarmName")
        self.cloudwatch.put_metric_alarm(
            AlarmName=name,
            AlarmDescription=taken.plain("AlarmDescription"),
            Namespace=taken.plain("Namespace"),
            MetricName=taken.plain("MetricName"),
            Dimensions=taken.plain("Dimensions"),
            ComparisonOperator=taken.plain("ComparisonOperator"),
            Threshold=taken.plain("Threshold"),
            Statistic=taken.plain("Statistic"),
            Period=taken.plain("Period"),
            EvaluationPeriods=taken.plain("EvaluationPeriods"),
            TreatMissingData=taken.plain("TreatMissingData"),
            AlarmActions=taken.plain("AlarmActions"),
            OKActions=taken.plain("OKActions"),
        )
        return {"": name}

    def _budgets_budget(self, taken: Taken) -> dict[str, str]:
        wanted = taken.one("Budget")
        limit = wanted.plain("BudgetLimit")
        name = wanted.plain("BudgetName")
        self.budgets.create_budget(
            AccountId=ACCOUNT,
            Budget={
                "BudgetName": name,
                "BudgetType": wanted.plain("BudgetType"),
                "TimeUnit": wanted.plain("TimeUnit"),
                "BudgetLimit": {"Amount": str(limit["Amount"]), "Unit": limit["Unit"]},
            },
            NotificationsWithSubscribers=taken.plain("NotificationsWithSubscribers"),
        )
        return {"": name}
